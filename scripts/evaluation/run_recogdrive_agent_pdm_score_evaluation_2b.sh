#!/usr/bin/env bash
# Scores the 2B model by NAVSIM's PDM scorer: PDMS with NAVSIM v1.1, EPDMS with v2.x, in one stage or, for the splits
# called two_stage, in two. The VLM runs, or its hidden states come from a cache. Prints a table of the mean scores.
#
#   bash scripts/evaluation/run_recogdrive_agent_pdm_score_evaluation_2b.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact command and run nothing
#   overrides   go to the scoring runner and come last, for example agent.sampling.deterministic=true
#
# Environment (in brackets the defaults):
#   CHECKPOINT           the planner (.ckpt or .safetensors); must be set
#   VLM_PATH             the VLM's folder or hub id; must be set, or CACHE_PATH
#   CACHE_PATH           hidden states of SPLIT, by run_caching_recogdrive_hidden_state_eval.sh [none: the VLM runs]
#   METRIC_CACHE_PATH    metric caches, by run_metric_caching.sh [NAVSIM_EXP_ROOT/metric_cache_SPLIT]
#   OPENSCENE_DATA_ROOT  must be set, as must NUPLAN_MAPS_ROOT and NAVSIM_EXP_ROOT
#   AGENT                agent config [recogdrive_2b]; recogdrive_vlm_2b: the VLM alone, as a text planner
#   SPLIT                train_test_split [navtest]; with NAVSIM v2.x also navhard_two_stage, warmup_two_stage
#   EXPERIMENT           experiment_name [evaluation_AGENT_SPLIT]
#   WORKER               NAVSIM's worker [ray_shared_gpus: Ray, each worker with a share of a GPU; sequential without a
#                        GPU]; also single_machine_thread_pool: threads that share one GPU and one VLM;
#                        ray_distributed_no_torch: Ray on the CPU. Scores do not depend on it
#   WORKERS_PER_GPU      Ray workers that share a GPU, each with its own VLM [1; 4 from a cache]
#   GPUS_PER_NODE        GPUs to use [those in CUDA_VISIBLE_DEVICES, else all]; 0: the CPU
#   NAVSIM_DEVKIT_ROOT   a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/planning.sh
source "$HERE/../planning.sh"
read_arguments "$@"
require_variables OPENSCENE_DATA_ROOT NUPLAN_MAPS_ROOT NAVSIM_EXP_ROOT

AGENT="${AGENT:-recogdrive_2b}"
SPLIT="${SPLIT:-navtest}"
EXPERIMENT="${EXPERIMENT:-evaluation_${AGENT}_$SPLIT}"
METRIC_CACHE_PATH="${METRIC_CACHE_PATH:-$NAVSIM_EXP_ROOT/metric_cache_$SPLIT}"
require_annotations
set_planner
set_worker
require_folder METRIC_CACHE_PATH "fill it with SPLIT=$SPLIT scripts/cache_dataset/run_metric_caching.sh"
require_navsim
set_split
RUNNER=run_pdm_score.py
[[ $NAVSIM_MAJOR -lt 2 || $SPLIT == *two_stage* ]] || RUNNER=run_pdm_score_one_stage.py

# In two stages NAVSIM would plan all other scenes, and then write no scores.
if ! $DRY_RUN && [[ $SPLIT == *two_stage* ]] && ! overridden metric_cache_path; then
    run_command python -m navsim_recogdrive.agents.check_metric_cache "$METRIC_CACHE_PATH" --split "$SPLIT" \
        "${SPLIT_PATHS[@]}" "${OVERRIDES[@]}"
fi

remember_files "$EXPERIMENT" '*.csv'
say "NAVSIM v$NAVSIM_MAJOR: agent=$AGENT on $SPLIT by $WORKER, $GPUS_PER_NODE GPUs"
run_or_print python "$NAVSIM_SCRIPT_ROOT/$RUNNER" "${PLANNER[@]}" "train_test_split=$SPLIT" \
    "experiment_name=$(quoted "$EXPERIMENT")" "metric_cache_path=$(quoted "$METRIC_CACHE_PATH")" "${SPLIT_PATHS[@]}" \
    "${WORKERS[@]}" "${OVERRIDES[@]}"
! $DRY_RUN || exit 0

SCORES="$(newest_since "$EXPERIMENT" '*.csv')"
python "$HERE/../score_table.py" "$AGENT on $SPLIT=$SCORES"
