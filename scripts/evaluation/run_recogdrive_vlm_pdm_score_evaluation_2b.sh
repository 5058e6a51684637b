#!/usr/bin/env bash
# Scores the 2B VLM alone, as a text planner, by NAVSIM's PDM scorer; there is no CHECKPOINT and no cache.
#
#   bash scripts/evaluation/run_recogdrive_vlm_pdm_score_evaluation_2b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_agent_pdm_score_evaluation_2b.sh (see its --help), with AGENT [recogdrive_vlm_2b].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
AGENT="${AGENT:-recogdrive_vlm_2b}" exec bash "$HERE/run_recogdrive_agent_pdm_score_evaluation_2b.sh" "$@"
