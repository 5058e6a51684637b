#!/usr/bin/env bash
# Scores the 8B model by NAVSIM's PDM scorer.
#
#   bash scripts/evaluation/run_recogdrive_agent_pdm_score_evaluation_8b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_agent_pdm_score_evaluation_2b.sh (see its --help), with AGENT [recogdrive_8b].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
AGENT="${AGENT:-recogdrive_8b}" exec bash "$HERE/run_recogdrive_agent_pdm_score_evaluation_2b.sh" "$@"
