#!/usr/bin/env bash
# The whole road at tiny size, on CPU, in minutes: a synthetic driving world, a tiny random VLM, then NAVSIM's own runners
# with agent=recogdrive_tiny, which is recogdrive_2b but for its size: cache hidden states, train by imitation, cache
# metrics, train on by reinforcement (agent=recogdrive_tiny_rl), score, write a submission and an evaluation report.
#
#   bash scripts/quickstart.sh [--offline]
#
#   --offline   do not use or install NAVSIM; run the same stages on the same world with navsim_recogdrive.offline,
#               without reinforcement learning: its reward is NAVSIM's scorer
#
# NAVSIM is used if it is importable; else NAVSIM_DEVKIT_ROOT (and NUPLAN_DEVKIT_ROOT); else it is installed from its
# repositories; where that fails, the script says so and goes on in offline mode.
#
# Environment: QUICKSTART_DIR (default outputs/quickstart): everything is written there. A second run reuses the world,
# the VLM and the caches that are complete. QUICKSTART_EPOCHS (40) of imitation, QUICKSTART_RL_EPOCHS (4; 0: none) of
# reinforcement learning. QUICKSTART_VLM: a VLM of one's own, as tiny as that one, in place of a random one.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
cd "$REPOSITORY_ROOT"
SECONDS=0
OFFLINE=false
case "${1:-}" in
    --offline) OFFLINE=true ;;
    "") ;;
    *) _refuse "unknown option $1" ;;
esac
OUT="$(mkdir -p "${QUICKSTART_DIR:-outputs/quickstart}" && cd "${QUICKSTART_DIR:-outputs/quickstart}" && pwd)"

stage() { say "[$((SECONDS / 60))m$(printf %02d $((SECONDS % 60)))s] $*"; }

install_navsim() {
    # One quick question first, so that a machine without a way there does not wait for pip's retries.
    GIT_TERMINAL_PROMPT=0 timeout 30 git ls-remote --exit-code https://github.com/autonomousvision/navsim v2.2 \
        >/dev/null 2>&1 || return 1
    say "Installing NAVSIM and nuplan-devkit from their repositories"
    python -m pip install --quiet --no-deps -r requirements/devkits.txt || return 1
}

prepare_environment quickstart
MODE=navsim
if $OFFLINE; then
    MODE=offline
else
    status=0
    find_navsim || status=$?
    [[ $status -ne 2 ]] || exit 2
    if [[ $status -eq 1 ]] && ! { install_navsim && find_navsim; }; then
        say "$NAVSIM_MISSING, and its repositories cannot be reached: running offline, with the world's own scores"
        MODE=offline
    fi
fi
[[ $MODE == offline ]] || prepare_environment quickstart,navsim

stage "Making the synthetic world"
python -m navsim_recogdrive.world "$OUT/world" --preset quickstart
export OPENSCENE_DATA_ROOT="$OUT/world" NUPLAN_MAPS_ROOT="$OUT/world/maps" VLM_PATH="${QUICKSTART_VLM:-$OUT/tiny_vlm}"
logs() { python -c 'import json, sys; print(",".join(json.load(open(sys.argv[1]))[sys.argv[2] + "_logs"]))' "$OUT/world/world.json" "$1"; }

if [[ ! -f $VLM_PATH/config.json ]]; then
    stage "Writing a tiny randomly initialised VLM"
    python -m navsim_recogdrive.vlm.tiny_checkpoint "$VLM_PATH" --hidden-size 64 --tile-size 112
fi

# A model of this size gains nothing from a second thread, and loses much where something else uses that core.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

EPOCHS="${QUICKSTART_EPOCHS:-40}" RL_EPOCHS="${QUICKSTART_RL_EPOCHS:-4}"
AGENT=(agent=recogdrive_tiny) # recogdrive_2b at a size that trains on two CPU cores
IMITATION=("trainer.params.max_epochs=$EPOCHS" dataloader.params.batch_size=16)
TRAINER=(trainer.params.accelerator=cpu trainer.params.precision=32 trainer.params.gradient_clip_val=1.0)
LOGS=("train_logs=[$(logs train)]" "val_logs=[$(logs val)]")

if [[ $MODE == offline ]]; then
    offline() { run_command python -m navsim_recogdrive.offline "output_dir='$OUT/offline'" "${AGENT[@]}" "$@"; }
    stage "Caching hidden states"
    offline stage=cache "${LOGS[@]}"
    stage "Training the planner by imitation"
    rm -rf "$OUT/offline/lightning_logs"
    offline stage=train "${LOGS[@]}" "${TRAINER[@]}" "${IMITATION[@]}"
    stage "Scoring with the world's own scores"
    CHECKPOINT="$(find "$OUT/offline" -name last.ckpt | head -n 1)"
    offline stage=score "agent.checkpoint_path='$CHECKPOINT'"
    stage "Done. Everything is in $OUT"
    exit 0
fi

export NAVSIM_EXP_ROOT="$OUT/navsim_v$NAVSIM_MAJOR" NAVSIM_DEVKIT_ROOT="${NAVSIM_DEVKIT_ROOT:-${NAVSIM_SCRIPT_ROOT%/navsim/planning/script}}"
EVERY_FRAME=train_test_split.scene_filter.frame_interval=1
CACHE="$NAVSIM_EXP_ROOT/training_cache"
METRIC_CACHE="$NAVSIM_EXP_ROOT/metric_cache"
if [[ $NAVSIM_MAJOR -ge 2 ]]; then
    SCORE=run_pdm_score_one_stage.py METRIC_CACHE_PATH=metric_cache_path REMAKE=force_feature_computation
    SUBMISSION_EXTRA=("+train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]")
else
    SCORE=run_pdm_score.py METRIC_CACHE_PATH=cache.cache_path REMAKE=cache.force_feature_computation SUBMISSION_EXTRA=()
fi
navsim() { local script="$1"; shift; run_command python "$NAVSIM_SCRIPT_ROOT/$script" "$@"; }

stage "NAVSIM v$NAVSIM_MAJOR: run_dataset_caching.py agent=recogdrive_tiny"
navsim run_dataset_caching.py "${AGENT[@]}" train_test_split=trainval "$EVERY_FRAME" worker=sequential \
    experiment_name=caching "cache_path='$CACHE'" force_cache_computation=false

train() {
    navsim run_training.py "${TRAINER[@]}" "${LOGS[@]}" train_test_split=trainval "cache_path='$CACHE'" \
        use_cache_without_dataset=true force_cache_computation=false trainer.params.strategy=auto \
        dataloader.params.num_workers=1 dataloader.params.pin_memory=false "$@"
}
metrics() {
    stage "NAVSIM v$NAVSIM_MAJOR: run_metric_caching.py train_test_split=$1"
    navsim run_metric_caching.py "train_test_split=$1" "$EVERY_FRAME" worker=single_machine_thread_pool \
        worker.use_process_pool=true "$METRIC_CACHE_PATH='${METRIC_CACHE}_$1'" "$REMAKE=false"
}

stage "NAVSIM v$NAVSIM_MAJOR: run_training.py agent=recogdrive_tiny"
train "${AGENT[@]}" "${IMITATION[@]}" experiment_name=training
CHECKPOINT="$(newest training last.ckpt)"

if ((RL_EPOCHS > 0)); then
    metrics trainval
    stage "NAVSIM v$NAVSIM_MAJOR: run_training.py agent=recogdrive_tiny_rl"
    train agent=recogdrive_tiny_rl "agent.reference_policy_checkpoint='$CHECKPOINT'" experiment_name=training_rl \
        "agent.metric_cache_path='${METRIC_CACHE}_trainval'" agent.reward.workers=1 agent.reward.scenes_in_memory=600 \
        agent.rl.advantage_scale=global agent.rl.rollout_std_floor=0.02 \
        "trainer.params.max_epochs=$RL_EPOCHS" dataloader.params.batch_size=16
    RL_CHECKPOINT="$(newest training_rl last.ckpt)"
fi

metrics test

score() {
    local name="$1"
    shift
    stage "NAVSIM v$NAVSIM_MAJOR: $SCORE $1"
    navsim "$SCORE" "$@" train_test_split=test "$EVERY_FRAME" worker=sequential "experiment_name=score_$name" \
        "metric_cache_path='${METRIC_CACHE}_test'"
}
score human agent=human_agent
score constant_velocity agent=constant_velocity_agent
ROWS=("human=$(newest score_human '*.csv')" "constant velocity=$(newest score_constant_velocity '*.csv')")
score recogdrive "${AGENT[@]}" "agent.checkpoint_path='$CHECKPOINT'"
ROWS+=("recogdrive_tiny, $EPOCHS epochs of imitation=$(newest score_recogdrive '*.csv')")
if ((RL_EPOCHS > 0)); then
    score recogdrive_rl "${AGENT[@]}" "agent.checkpoint_path='$RL_CHECKPOINT'"
    ROWS+=("  and $RL_EPOCHS epochs of reinforcement=$(newest score_recogdrive_rl '*.csv')")
fi

stage "NAVSIM v$NAVSIM_MAJOR: run_create_submission_pickle.py"
navsim run_create_submission_pickle.py "${AGENT[@]}" "agent.checkpoint_path='$CHECKPOINT'" train_test_split=test \
    "$EVERY_FRAME" experiment_name=submission team_name=quickstart authors=quickstart email=none institution=none \
    country=none "${SUBMISSION_EXTRA[@]}"

SUBMISSION="$(newest submission submission.pkl)"
python -m navsim_recogdrive.agents.check_submission "$SUBMISSION" --split test "$EVERY_FRAME"

stage "Evaluation report, with pictures of the worst scenes"
REPORT="$OUT/report_v$NAVSIM_MAJOR.html" PICTURES="$NAVSIM_EXP_ROOT/pictures"
RUNS=("human=$(newest score_human '*.csv')" "constant velocity=$(newest score_constant_velocity '*.csv')")
RUNS+=("imitation=$(newest score_recogdrive '*.csv')")
PLANNERS=(--checkpoint "imitation=$CHECKPOINT")
if ((RL_EPOCHS > 0)); then
    RUNS+=("reinforcement=$(newest score_recogdrive_rl '*.csv')")
    PLANNERS+=(--checkpoint "reinforcement=$RL_CHECKPOINT")
fi
report() {
    python -m navsim_recogdrive.report "${RUNS[@]}" --baseline imitation --scenes 3 --output "$REPORT" "$@" >"$OUT/report.log"
}
mkdir -p "$PICTURES"
report --tokens "$PICTURES/worst.txt"
python -m navsim_recogdrive.agents.scene_facts "$OUT/world/navsim_logs/test" "$PICTURES/scenes.csv"
mapfile -t WORST <"$PICTURES/worst.txt"
python -m navsim_recogdrive.agents.draw_scenes pictures "$PICTURES" --token "${WORST[@]}" "${PLANNERS[@]}" \
    --metric-cache "${METRIC_CACHE}_test" >"$OUT/pictures.log"
report --scene-facts "$PICTURES/scenes.csv" --pictures "$PICTURES"

stage "Done. Scores of NAVSIM v$NAVSIM_MAJOR on the world's test split:"
python scripts/score_table.py "${ROWS[@]}"
echo "Submission: $SUBMISSION"
echo "Report: $REPORT"
