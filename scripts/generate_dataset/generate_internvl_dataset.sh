#!/usr/bin/env bash
# Writes trajectory questions for stage 1 from NAVSIM's logs, in InternVL's format: one sample per scene, with the prompt
# and the answer of the text planner; its report and its mixture entry beside it. Logs are read in parallel. Run it again
# to continue: logs that are complete are left alone.
#
#   bash scripts/generate_dataset/generate_internvl_dataset.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact command and run nothing
#   overrides   as for run_training.py, for example train_test_split.scene_filter.frame_interval=2
#
# Environment (in brackets the defaults):
#   OPENSCENE_DATA_ROOT  must be set, as must NAVSIM_EXP_ROOT
#   VLM_PATH             folder or hub id of the VLM that is to be trained: its tokenizer spells out the published prompt.
#                        Must be set, or PROMPT_PROFILE a profile of text; weights are not read
#   SPLIT                train_test_split [navtrain]
#   LOGS                 train: only logs of train_logs, as run_training.py; val; all [train for navtrain, trainval and
#                        others of the trainval data, else all]
#   OUTPUT               the JSONL file [NAVSIM_EXP_ROOT/vlm_data/navsim_traj_SPLIT.jsonl]
#   KIND                 trajectory, or records: what generate_internvl_dataset_pipeline.sh asks about (reads the maps:
#                        NUPLAN_MAPS_ROOT must be set) [trajectory]
#   CAM_TYPE             single: the front camera; multi: front-left, front, front-right [single]
#   PROMPT_PROFILE       name or JSON file [auto: published, or three_cameras]
#   WORKERS              processes [all cores]
#   NAVSIM_DEVKIT_ROOT   a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
read_arguments "$@"
require_variables OPENSCENE_DATA_ROOT NAVSIM_EXP_ROOT

SPLIT="${SPLIT:-navtrain}"
KIND="${KIND:-trajectory}"
case "$KIND" in
    trajectory)
        NAME=navsim_traj
        [[ -n ${PROMPT_PROFILE:-} ]] || require_variables VLM_PATH
        ;;
    records)
        NAME=navsim_records
        require_variables NUPLAN_MAPS_ROOT
        ;;
    *) _refuse "KIND must be trajectory or records, found $KIND" ;;
esac
OUTPUT="${OUTPUT:-$NAVSIM_EXP_ROOT/vlm_data/${NAME}_$SPLIT.jsonl}"
SETTINGS=(--output "$OUTPUT" --kind "$KIND" --logs "${LOGS:-auto}" --cam-type "${CAM_TYPE:-single}")
[[ $KIND == records ]] || SETTINGS+=(--prompt-profile "${PROMPT_PROFILE:-auto}")
if [[ -n ${WORKERS:-} ]]; then
    require_whole_number WORKERS
    SETTINGS+=(--workers "$WORKERS")
fi
require_navsim
say "NAVSIM v$NAVSIM_MAJOR: $KIND of $SPLIT into $OUTPUT"
run_or_print python -m navsim_recogdrive.agents.qa_dataset "${SETTINGS[@]}" "train_test_split=$SPLIT" "${OVERRIDES[@]}"
