#!/usr/bin/env bash
# Makes submission.pkl of the 2B model for a NAVSIM leaderboard, and checks it: every token, 8 poses of 0.5 s, finite and
# plausible. NAVSIM v1.1 writes the file of the navtest leaderboard, v2.x that of the two-stage ones.
#
#   bash scripts/submission/run_recogdrive_create_submission_pickle_2b.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact command and run nothing
#   overrides   go to NAVSIM's submission runner and come last
#
# Environment (in brackets the defaults):
#   TEAM_NAME, AUTHORS, EMAIL, INSTITUTION, COUNTRY   as they shall stand in the file; must be set
#   CHECKPOINT           the planner (.ckpt or .safetensors); must be set
#   VLM_PATH             the VLM's folder or hub id; must be set, or CACHE_PATH
#   CACHE_PATH           hidden states of SPLIT, by run_caching_recogdrive_hidden_state_eval.sh [none: the VLM runs]; there
#                        are none of private_test_hard_two_stage, which NAVSIM cannot cache
#   OPENSCENE_DATA_ROOT  must be set, as must NUPLAN_MAPS_ROOT and NAVSIM_EXP_ROOT
#   AGENT                agent config [recogdrive_2b]; recogdrive_vlm_2b: the VLM alone, as a text planner
#   SPLIT                train_test_split [navtest with NAVSIM v1.1, private_test_hard_two_stage with v2.x]; with v2.x also
#                        warmup_two_stage, navhard_two_stage
#   EXPERIMENT           experiment_name [submission_AGENT_SPLIT]
#   GPUS_PER_NODE        [those in CUDA_VISIBLE_DEVICES, else all]; NAVSIM's runner uses one; 0: the CPU
#   NAVSIM_DEVKIT_ROOT   a NAVSIM checkout where NAVSIM is not importable
#
# The exit status is 1 if the file must not be uploaded; what is only odd about it is printed as a warning.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/planning.sh
source "$HERE/../planning.sh"
read_arguments "$@"
require_variables TEAM_NAME AUTHORS EMAIL INSTITUTION COUNTRY OPENSCENE_DATA_ROOT NUPLAN_MAPS_ROOT NAVSIM_EXP_ROOT

AGENT="${AGENT:-recogdrive_2b}"
GPUS_PER_NODE="${GPUS_PER_NODE:-$(visible_gpus | wc -l)}"
require_whole_number GPUS_PER_NODE
require_navsim
if [[ -z ${SPLIT:-} ]]; then
    SPLIT=private_test_hard_two_stage
    [[ $NAVSIM_MAJOR -ge 2 ]] || SPLIT=navtest
fi
EXPERIMENT="${EXPERIMENT:-submission_${AGENT}_$SPLIT}"
set_planner
set_split
((GPUS_PER_NODE > 0)) || PLANNER+=(agent.device=cpu)
RUNNER=run_create_submission_pickle.py
[[ $SPLIT != private_test_hard_two_stage ]] || RUNNER=run_create_submission_pickle_challenge.py
# The runner of v2.x goes through second-stage scenes also where a split has none.
NO_SECOND_STAGE=()
[[ $NAVSIM_MAJOR -lt 2 || $SPLIT == *two_stage* ]] ||
    NO_SECOND_STAGE=("++train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]")

remember_files "$EXPERIMENT" submission.pkl
say "NAVSIM v$NAVSIM_MAJOR: submission of agent=$AGENT for $SPLIT"
run_or_print python "$NAVSIM_SCRIPT_ROOT/$RUNNER" "${PLANNER[@]}" "train_test_split=$SPLIT" \
    "experiment_name=$(quoted "$EXPERIMENT")" "team_name=$(quoted "$TEAM_NAME")" "authors=$(quoted "$AUTHORS")" \
    "email=$(quoted "$EMAIL")" "institution=$(quoted "$INSTITUTION")" "country=$(quoted "$COUNTRY")" \
    "${SPLIT_PATHS[@]}" "${NO_SECOND_STAGE[@]}" "${OVERRIDES[@]}"
! $DRY_RUN || exit 0

FILE="$(newest_since "$EXPERIMENT" submission.pkl)"
say "Checking $FILE"
python -m navsim_recogdrive.agents.check_submission "$FILE" --split "$SPLIT" "${SPLIT_PATHS[@]}" \
    "${OVERRIDES[@]}"
