#!/usr/bin/env bash
# Draws scenes: front camera and bird's-eye view with the human's and the planned trajectories; of NAVSIM's data, or of the
# synthetic world where NAVSIM is absent.
#
#   bash scripts/visualization/draw_scenes.sh [--dry-run] [OPTIONS]
#
#   --dry-run   print the exact command and run nothing
#   options     of python -m navsim_recogdrive.agents.draw_scenes (with WORLD: navsim_recogdrive.viz), which --help lists;
#               for example --token TOKEN..., --log NAME..., --scenes 8, --samples 16, --vector pdf
#
# Environment (in brackets the defaults):
#   OUTPUT               folder to write to [outputs/KIND]
#   CHECKPOINT           the planner (.ckpt or .safetensors); several: --checkpoint NAME=FILE for each, and CHECKPOINT is
#                        left out [none: the human's trajectory alone]
#   VLM_PATH             the VLM's folder or hub id; must be set where there is a planner, or --vlm
#   METRIC_CACHE_PATH    metric caches of these scenes: plans and samples get their PDM scores [none]
#   OPENSCENE_DATA_ROOT  NAVSIM's data; must be set, or WORLD
#   NUPLAN_MAPS_ROOT     nuPlan's maps [none are drawn]
#   WORLD                folder of the synthetic world, drawn without NAVSIM [none]
#   KIND                 pictures; denoising: a film of each scene; training: one film of several checkpoints [pictures]
#   NAVSIM_DEVKIT_ROOT   a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
read_leading_options "$@"

KIND="${KIND:-pictures}"
case "$KIND" in
    pictures | denoising | training) ;;
    *) _refuse "KIND must be pictures, denoising or training, found $KIND" ;;
esac
OUTPUT="${OUTPUT:-outputs/$KIND}"
SETTINGS=("$KIND" "$OUTPUT")
NAMED=false
for argument in "${ARGUMENTS[@]}"; do
    [[ $argument != --checkpoint && $argument != --checkpoint=* ]] || NAMED=true
done
if [[ -n ${CHECKPOINT:-} ]] && ! $NAMED; then
    require_file CHECKPOINT
    SETTINGS+=(--checkpoint "ReCogDrive=$CHECKPOINT")
fi
if [[ -n ${WORLD:-} ]]; then
    [[ -z ${METRIC_CACHE_PATH:-} ]] || _refuse "METRIC_CACHE_PATH is set, but scenes of WORLD are scored by the world"
    MODULE=navsim_recogdrive.viz
    SETTINGS+=(--world "$WORLD")
else
    require_variables OPENSCENE_DATA_ROOT
    MODULE=navsim_recogdrive.agents.draw_scenes
    if [[ -n ${METRIC_CACHE_PATH:-} ]]; then
        require_folder METRIC_CACHE_PATH "fill it with scripts/cache_dataset/run_metric_caching.sh"
        SETTINGS+=(--metric-cache "$METRIC_CACHE_PATH")
    fi
    require_navsim
fi
run_or_print python -m "$MODULE" "${SETTINGS[@]}" "${ARGUMENTS[@]}"
