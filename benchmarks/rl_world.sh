#!/usr/bin/env bash
# Does reinforcement learning raise the PDM score of scenes that it has not seen? Imitation learning, then reinforcement
# learning, through NAVSIM's own runners at the quickstart's tiny size on a synthetic world, several times with different
# seeds; both policies are scored on the world's test split.
#
#   bash benchmarks/rl_world.sh
#
# Run it once for each version of NAVSIM, with the same folder: world, hidden states and the policies of imitation
# learning serve both. Steps that are complete are not run again; delete a result to have it made again. At the end it
# prints the table of what is there (benchmarks/rl_table.py).
#
# Environment (in brackets the defaults):
#   RL_WORLD_DIR        where everything is written [outputs/rl_world]
#   SEEDS               of training and of the evaluation's noise ["0 1 2"]
#   IL_EPOCHS           [25]
#   RL_EPOCHS           [4]
#   REWARD_WORKERS      processes that compute rewards beside the training [1]
#   NAVSIM_DEVKIT_ROOT  a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
# shellcheck source=scripts/common.sh
source scripts/common.sh
[[ $# -eq 0 ]] || { echo "unknown option $1 (see --help)" >&2; exit 2; }
OUT="$(mkdir -p "${RL_WORLD_DIR:-outputs/rl_world}" && cd "${RL_WORLD_DIR:-outputs/rl_world}" && pwd)"
require_navsim
export OPENSCENE_DATA_ROOT="$OUT/world" NUPLAN_MAPS_ROOT="$OUT/world/maps" VLM_PATH="$OUT/tiny_vlm"
export NAVSIM_EXP_ROOT="$OUT/v$NAVSIM_MAJOR" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

SIZE=(
    agent.vlm.dtype=float32 agent.vlm.hidden_length=640
    agent.planner.hidden_state_size=64 agent.planner.num_heads=4 agent.planner.head_dim=16 agent.planner.num_layers=4
    agent.planner.output_size=64 agent.planner.mlp_hidden_size=128
)
# Scenes of every second frame to train on: neighbours differ little. Of every frame to score: v2.x compares neighbours.
INTERVAL=train_test_split.scene_filter.frame_interval
declare -A SCENES=([trainval]="$INTERVAL=2" [test]="$INTERVAL=1")
if [[ $NAVSIM_MAJOR -ge 2 ]]; then
    SCORE=run_pdm_score_one_stage.py METRIC_CACHE=metric_cache_path FORCE=force_feature_computation
else
    SCORE=run_pdm_score.py METRIC_CACHE=cache.cache_path FORCE=cache.force_feature_computation
fi
stage() { say "[$((SECONDS / 60))m$(printf %02d $((SECONDS % 60)))s] NAVSIM v$NAVSIM_MAJOR: $*"; }
navsim() { local script="$1"; shift; python "$NAVSIM_SCRIPT_ROOT/$script" "$@"; }
# keep EXPERIMENT PATTERN FILE: the newest such file of an experiment, under a name that says that it is complete.
keep() {
    local found
    found="$(find "$NAVSIM_EXP_ROOT/$1" -name "$2" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)"
    mkdir -p "$(dirname "$3")"
    cp "$found" "$3.part"
    mv "$3.part" "$3"
}

# Many short drives: with few long ones the planner of imitation learns scenes by heart.
python -m navsim_recogdrive.world "$OUT/world" --preset quickstart --train-logs 120 --val-logs 12 --test-logs 36 \
    --seconds-per-log 16
logs() { python -c 'import json, sys; print(",".join(json.load(open(sys.argv[1]))[sys.argv[2] + "_logs"]))' "$OUT/world/world.json" "$1"; }
[[ -f $VLM_PATH/config.json ]] || python -m navsim_recogdrive.vlm.tiny_checkpoint "$VLM_PATH" --hidden-size 64 --tile-size 112

for split in trainval test; do
    if [[ ! -f $OUT/hidden_states_$split.complete ]]; then
        stage "hidden states of $split"
        navsim run_dataset_caching.py agent=recogdrive_2b "${SIZE[@]}" "train_test_split=$split" "${SCENES[$split]}" \
            worker=sequential experiment_name=caching "cache_path='$OUT/hidden_states_$split'" \
            force_cache_computation=false
        touch "$OUT/hidden_states_$split.complete"
    fi
    if [[ ! -f $NAVSIM_EXP_ROOT/metric_cache_$split.complete ]]; then
        stage "metric caches of $split"
        navsim run_metric_caching.py "train_test_split=$split" "${SCENES[$split]}" worker=sequential \
            "$METRIC_CACHE='$NAVSIM_EXP_ROOT/metric_cache_$split'" "$FORCE=false"
        touch "$NAVSIM_EXP_ROOT/metric_cache_$split.complete"
    fi
done

# train SEED EXPERIMENT SETTINGS...
train() {
    local seed="$1" experiment="$2"
    shift 2
    navsim run_training.py "${SIZE[@]}" train_test_split=trainval "seed=$seed" "experiment_name=$experiment" \
        "cache_path='$OUT/hidden_states_trainval'" use_cache_without_dataset=true force_cache_computation=false \
        "train_logs=[$(logs train)]" "val_logs=[$(logs val)]" trainer.params.accelerator=cpu trainer.params.precision=32 \
        trainer.params.strategy=auto trainer.params.gradient_clip_val=1.0 dataloader.params.num_workers=1 \
        dataloader.params.pin_memory=false +trainer.params.enable_progress_bar=false "$@"
}

# score SEED KIND
score() {
    local file="$NAVSIM_EXP_ROOT/seed_$1/score_$2.csv" checkpoint="$NAVSIM_EXP_ROOT/seed_$1/$2.ckpt"
    [[ ! -f $file ]] || return 0
    [[ $2 != il ]] || checkpoint="$OUT/il/seed_$1.ckpt"
    stage "seed $1: $SCORE, $2"
    navsim "$SCORE" agent=recogdrive_2b "${SIZE[@]}" "agent.checkpoint_path='$checkpoint'" "agent.sampling.seed=$1" \
        "agent.hidden_state_cache='$OUT/hidden_states_test'" train_test_split=test "${SCENES[test]}" worker=sequential \
        "experiment_name=score_$2_seed_$1" "metric_cache_path='$NAVSIM_EXP_ROOT/metric_cache_test'"
    keep "score_$2_seed_$1" '*.csv' "$file"
}

for seed in ${SEEDS:-0 1 2}; do
    if [[ ! -f $OUT/il/seed_$seed.ckpt ]]; then
        stage "seed $seed: imitation learning"
        train "$seed" "il_seed_$seed" agent=recogdrive_2b agent.imitation.draws_per_scene=16 \
            agent.optimizer.learning_rate=2e-3 "trainer.params.max_epochs=${IL_EPOCHS:-25}" \
            dataloader.params.batch_size=16
        keep "il_seed_$seed" last.ckpt "$OUT/il/seed_$seed.ckpt"
    fi
    if [[ ! -f $NAVSIM_EXP_ROOT/seed_$seed/rl.ckpt ]]; then
        stage "seed $seed: reinforcement learning"
        train "$seed" "rl_seed_$seed" agent=recogdrive_2b_rl agent.optimizer.learning_rate=5e-4 \
            agent.rl.advantage_scale=global agent.rl.rollout_std_floor=0.02 \
            "agent.reference_policy_checkpoint='$OUT/il/seed_$seed.ckpt'" \
            "agent.metric_cache_path='$NAVSIM_EXP_ROOT/metric_cache_trainval'" \
            "agent.reward.workers=${REWARD_WORKERS:-1}" agent.reward.scenes_in_memory=1500 \
            "trainer.params.max_epochs=${RL_EPOCHS:-4}" dataloader.params.batch_size=16
        keep "rl_seed_$seed" last.ckpt "$NAVSIM_EXP_ROOT/seed_$seed/rl.ckpt"
    fi
    score "$seed" il
    score "$seed" rl
done
python benchmarks/rl_table.py "$OUT"
