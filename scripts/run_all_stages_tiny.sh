#!/usr/bin/env bash
# All three stages at tiny size, on CPU: trajectory questions and auto-labelled questions from the synthetic world,
# fine-tuning of a tiny InternVL on both, its evaluation as a text planner; then scripts/quickstart.sh with the trained
# VLM: caching, imitation, reinforcement, scores, submission. Needs NAVSIM (importable, or NAVSIM_DEVKIT_ROOT).
#
#   bash scripts/run_all_stages_tiny.sh
#
# The labelling server is "transformers serve" with a tiny VLM that answers "score 8" to everything, itself as a judge
# included: the road is real, what is labelled means nothing. Set OPENAI_BASE_URL and OPENAI_MODEL (and OPENAI_API_KEY)
# to ask a real one.
#
# Environment (in brackets the defaults):
#   ALL_STAGES_DIR       everything is written there [outputs/all_stages]; run again, it goes on where it stopped
#   LABELLED_SCENES      scenes that the server is asked about [12]
#   PRETRAINING_STEPS    steps of fine-tuning, of 8 samples each [100]
#   QUICKSTART_EPOCHS, QUICKSTART_RL_EPOCHS   see scripts/quickstart.sh
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
cd "$REPOSITORY_ROOT"
SECONDS=0
[[ $# -eq 0 ]] || _refuse "unknown option $1"
OUT="$(mkdir -p "${ALL_STAGES_DIR:-outputs/all_stages}" && cd "${ALL_STAGES_DIR:-outputs/all_stages}" && pwd)"
stage() { say "[$((SECONDS / 60))m$(printf %02d $((SECONDS % 60)))s] $*"; }

prepare_environment quickstart,navsim,pretraining,labels,server
status=0
find_navsim || status=$?
((status == 0)) || { echo "${NAVSIM_MISSING:-}; this script needs NAVSIM" >&2; exit "$status"; }
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" QUICKSTART_DIR="$OUT" QUICKSTART_VLM="$OUT/vlm"
export OPENSCENE_DATA_ROOT="$OUT/world" NUPLAN_MAPS_ROOT="$OUT/world/maps" NAVSIM_EXP_ROOT="$OUT/stage_1_v$NAVSIM_MAJOR"
export NAVSIM_DEVKIT_ROOT="${NAVSIM_DEVKIT_ROOT:-${NAVSIM_SCRIPT_ROOT%/navsim/planning/script}}"
EVERY_FRAME=train_test_split.scene_filter.frame_interval=1
DATA="$NAVSIM_EXP_ROOT/vlm_data"

stage "Making the synthetic world"
python -m navsim_recogdrive.world "$OUT/world" --preset quickstart
logs() { python -c 'import json, sys; print(",".join(json.load(open(sys.argv[1]))[sys.argv[2] + "_logs"]))' "$OUT/world/world.json" "$1"; }

stage "Stage 1: a tiny randomly initialised InternVL to begin with"
[[ -f $OUT/base_vlm/config.json ]] ||
    python -m navsim_recogdrive.vlm.tiny_checkpoint "$OUT/base_vlm" --hidden-size 64 --tile-size 112

stage "Stage 1: trajectory questions of the training and the test logs"
questions() {
    VLM_PATH="$OUT/base_vlm" SPLIT="$1" OUTPUT="$DATA/navsim_traj_$1.jsonl" \
        bash scripts/generate_dataset/generate_internvl_dataset.sh "$EVERY_FRAME" "train_logs=[$(logs train)]"
}
questions trainval
questions test

SERVER=
stop_server() { [[ -z $SERVER ]] || kill "$SERVER" 2>/dev/null || true; }
trap stop_server EXIT
if [[ -z ${OPENAI_BASE_URL:-} ]]; then
    stage "Stage 1: starting transformers serve with a tiny VLM"
    PORT="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    [[ -f $OUT/tiny_llava/config.json ]] || python -m navsim_recogdrive.pretraining.labelling.tiny_llava "$OUT/tiny_llava"
    HF_HUB_OFFLINE=1 python -c 'from transformers.cli.transformers import main; main()' serve "$OUT/tiny_llava" \
        --device cpu --host 127.0.0.1 --port "$PORT" >"$OUT/server.log" 2>&1 &
    SERVER=$!
    export OPENAI_BASE_URL="http://127.0.0.1:$PORT/v1" OPENAI_MODEL="$OUT/tiny_llava"
    for _ in {1..300}; do
        kill -0 "$SERVER" 2>/dev/null || { tail "$OUT/server.log" >&2; echo "transformers serve ended" >&2; exit 1; }
        (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && break
        sleep 0.5
    done
fi
stage "Stage 1: auto-labelled questions about ${LABELLED_SCENES:-12} scenes: generation, refinement, judging"
SPLIT=trainval OUTPUT="$DATA/navsim_recogdrive_trainval.jsonl" \
    bash scripts/generate_dataset/generate_internvl_dataset_pipeline.sh "$EVERY_FRAME" "train_logs=[$(logs train)]" -- \
    --limit-scenes "${LABELLED_SCENES:-12}" --max-tokens 32 --image-side 224 --concurrency 4
stop_server
SERVER=

stage "Stage 1: the mixture of both, checked"
python - "$DATA" <<'PYTHON'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
entries = [json.loads((folder / f"{name}_trainval.mixture.json").read_text()) for name in ("navsim_traj", "navsim_recogdrive")]
(folder / "mixture.json").write_text(json.dumps({**entries[0], **entries[1]}, indent=2))
PYTHON
python -m navsim_recogdrive.pretraining.datasets check "$DATA/mixture.json"

stage "Stage 1: fine-tuning"
MODEL="$OUT/base_vlm" MIXTURE="$DATA/mixture.json" OUTPUT="$OUT/vlm" GPUS_PER_NODE=0 \
    bash scripts/pretraining/internvl3_2b_dynamic_res_2nd_finetune_recogdrive_pretrain.sh --max-tiles 12 \
    --max-steps "${PRETRAINING_STEPS:-100}" --global-batch-size 8 --device-batch-size 4 --learning-rate 2e-3 \
    --precision float32 --no-gradient-checkpointing --drop-path 0 --save-steps 50 --log-steps 10 --workers 0

stage "Stage 1: how far its answers are from the expert's"
python -m navsim_recogdrive.pretraining.evaluation --vlm "$OUT/vlm" --annotation "$DATA/navsim_traj_test.jsonl" \
    --root "$OPENSCENE_DATA_ROOT" --output "$OUT/vlm_evaluation" --dtype float32

stage "Stages 2 and 3: scripts/quickstart.sh with this VLM"
bash scripts/quickstart.sh

stage "Stage 1 scored: the VLM alone as a text planner, agent=recogdrive_vlm_2b"
SCORE=run_pdm_score_one_stage.py
[[ $NAVSIM_MAJOR -ge 2 ]] || SCORE=run_pdm_score.py
python "$NAVSIM_SCRIPT_ROOT/$SCORE" agent=recogdrive_vlm_2b agent.hidden_size=64 agent.vlm.dtype=float32 \
    "agent.vlm.path='$OUT/vlm'" agent.vlm.hidden_length=640 train_test_split=test "$EVERY_FRAME" worker=sequential \
    experiment_name=score_text "metric_cache_path='$OUT/navsim_v$NAVSIM_MAJOR/metric_cache_test'"
python scripts/score_table.py "recogdrive_vlm_2b (tiny, ${PRETRAINING_STEPS:-100} steps)"="$(
    find "$NAVSIM_EXP_ROOT/score_text" -name '*.csv' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-
)"
stage "Done. Everything is in $OUT"
