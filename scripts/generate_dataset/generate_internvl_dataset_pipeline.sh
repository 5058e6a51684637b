#!/usr/bin/env bash
# Auto-labelled driving questions for stage 1: a VLM behind an OpenAI-compatible server (vLLM, SGLang, transformers serve,
# ...) answers questions about NAVSIM's scenes, refines its answers and judges them by what the annotations know; what
# passes becomes samples in InternVL's format. First the server is tried, then the scenes are read from the logs, once,
# then it is asked. Run it again to continue: no question is asked twice.
#
#   bash scripts/generate_dataset/generate_internvl_dataset_pipeline.sh [--dry-run] [HYDRA OVERRIDES] [-- OPTIONS]
#
#   --dry-run   print the exact commands and run nothing
#   overrides   for reading the scenes, as for run_training.py
#   options     of python -m navsim_recogdrive.pretraining.labelling run (its --help lists them), for example
#               -- --limit-scenes 20 --templates my_questions --threshold 8 --concurrency 64 --price-in 0.5
#
# Environment (in brackets the defaults):
#   OPENAI_BASE_URL      the server, such as http://127.0.0.1:8000/v1; must be set
#   OPENAI_MODEL         the model as the server names it; must be set
#   OPENAI_API_KEY       the key, where the server wants one; JUDGE_API_KEY for another judge's server. Keys are neither
#                        logged nor written
#   OPENSCENE_DATA_ROOT  must be set, as must NUPLAN_MAPS_ROOT and NAVSIM_EXP_ROOT
#   SPLIT                train_test_split [navtrain]
#   RECORDS              the file of scenes [NAVSIM_EXP_ROOT/vlm_data/navsim_records_SPLIT.jsonl]
#   OUTPUT               the samples [NAVSIM_EXP_ROOT/vlm_data/navsim_recogdrive_SPLIT.jsonl]
#   LOGS, WORKERS, NAVSIM_DEVKIT_ROOT   as for generate_internvl_dataset.sh
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"

SCENE_ARGUMENTS=()
while (($# > 0)) && [[ $1 != -- ]]; do
    SCENE_ARGUMENTS+=("$1")
    shift
done
(($# == 0)) || shift
OPTIONS=("$@")
ADDRESS_ONLY="the server's address holds a user name, a password or a query: set OPENAI_API_KEY or JUDGE_API_KEY in its place"
[[ ${OPENAI_BASE_URL:-} != *[@?#]* ]] || _refuse "OPENAI_BASE_URL: $ADDRESS_ONLY"
previous=
for option in "${OPTIONS[@]}"; do
    case "$option" in
        --key | --key=* | --judge-key | --judge-key=*)
            _refuse "set OPENAI_API_KEY or JUDGE_API_KEY in place of ${option%%=*}: arguments can be seen by others" ;;
    esac
    case "$previous $option" in *base-url[\ =]*[@?#]*) _refuse "$ADDRESS_ONLY" ;; esac
    previous="$option"
done
read_arguments "${SCENE_ARGUMENTS[@]}"
require_variables OPENAI_BASE_URL OPENAI_MODEL OPENSCENE_DATA_ROOT NUPLAN_MAPS_ROOT NAVSIM_EXP_ROOT

export SPLIT="${SPLIT:-navtrain}"
RECORDS="${RECORDS:-$NAVSIM_EXP_ROOT/vlm_data/navsim_records_$SPLIT.jsonl}"
OUTPUT="${OUTPUT:-$NAVSIM_EXP_ROOT/vlm_data/navsim_recogdrive_$SPLIT.jsonl}"
require_navsim # also the environment for what follows

LABEL=(python -m navsim_recogdrive.pretraining.labelling)
RUN=("${LABEL[@]}" run "$RECORDS" --output "$OUTPUT" "${OPTIONS[@]}")
HOST="${OPENAI_BASE_URL#*://}"
say "Trying $OPENAI_MODEL at ${HOST%%/*}"
run_or_print "${LABEL[@]}" check
DRY=()
! $DRY_RUN || DRY=(--dry-run)
KIND=records OUTPUT="$RECORDS" CAM_TYPE=single \
    run_command bash "$HERE/generate_internvl_dataset.sh" "${DRY[@]}" "${OVERRIDES[@]}"
say "Asking about the scenes in $RECORDS"
run_or_print "${RUN[@]}"
