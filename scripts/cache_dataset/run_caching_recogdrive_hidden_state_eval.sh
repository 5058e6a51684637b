#!/usr/bin/env bash
# Caches the VLM's hidden states of an evaluation split, so that many planner checkpoints are scored without running the
# VLM again: then score with agent.hidden_state_cache=CACHE_PATH.
#
#   bash scripts/cache_dataset/run_caching_recogdrive_hidden_state_eval.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_caching_recogdrive_hidden_state.sh (see its --help), with SPLIT [navtest].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
SPLIT="${SPLIT:-navtest}" exec bash "$HERE/run_caching_recogdrive_hidden_state.sh" "$@"
