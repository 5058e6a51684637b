#!/usr/bin/env bash
# Makes submission.pkl of the 8B model for a NAVSIM leaderboard, and checks it.
#
#   bash scripts/submission/run_recogdrive_create_submission_pickle_8b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_create_submission_pickle_2b.sh (see its --help), with AGENT [recogdrive_8b].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
AGENT="${AGENT:-recogdrive_8b}" exec bash "$HERE/run_recogdrive_create_submission_pickle_2b.sh" "$@"
