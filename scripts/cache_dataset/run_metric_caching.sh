#!/usr/bin/env bash
# Makes the metric caches of a split through NAVSIM's run_metric_caching.py: what scoring and the reward of
# reinforcement learning compare trajectories with. Run it again to continue: what is there is left alone. Metric caches
# of NAVSIM v1.1 and v2.x cannot be exchanged.
#
#   bash scripts/cache_dataset/run_metric_caching.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact command and run nothing
#   overrides   go to run_metric_caching.py
#
# Environment (in brackets the defaults):
#   OPENSCENE_DATA_ROOT  must be set, as must NUPLAN_MAPS_ROOT and NAVSIM_EXP_ROOT
#   SPLIT                train_test_split [navtest]; of navhard_two_stage and warmup_two_stage (v2.x) both stages
#   METRIC_CACHE_PATH    where to put them [NAVSIM_EXP_ROOT/metric_cache_SPLIT]
#   WORKER               NAVSIM's worker [ray_distributed_no_torch: all cores by Ray]; sequential: one core
#   NAVSIM_DEVKIT_ROOT   a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/planning.sh
source "$HERE/../planning.sh"
read_arguments "$@"
require_variables OPENSCENE_DATA_ROOT NUPLAN_MAPS_ROOT NAVSIM_EXP_ROOT

SPLIT="${SPLIT:-navtest}"
METRIC_CACHE_PATH="${METRIC_CACHE_PATH:-$NAVSIM_EXP_ROOT/metric_cache_$SPLIT}"
require_annotations
require_navsim
set_split
if [[ $NAVSIM_MAJOR -ge 2 ]]; then
    SETTINGS=("metric_cache_path=$(quoted "$METRIC_CACHE_PATH")" force_feature_computation=false)
else
    SETTINGS=("cache.cache_path=$(quoted "$METRIC_CACHE_PATH")" cache.force_feature_computation=false)
fi
say "NAVSIM v$NAVSIM_MAJOR: metric caches of $SPLIT in $METRIC_CACHE_PATH"
SETTINGS=(
    "train_test_split=$SPLIT" "worker=${WORKER:-ray_distributed_no_torch}" "${SETTINGS[@]}" "${SPLIT_PATHS[@]}"
    "${OVERRIDES[@]}"
)
# Without logs NAVSIM ends well, with nothing written.
$DRY_RUN || run_command python -m navsim_recogdrive.agents.log_shards --check-metric-caching "${SETTINGS[@]}"
run_or_print python "$NAVSIM_SCRIPT_ROOT/run_metric_caching.py" "${SETTINGS[@]}"
