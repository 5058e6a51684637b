#!/usr/bin/env bash
# Caches the VLM's hidden states of an evaluation split, so that many planner checkpoints are scored without running the
# VLM again: then score with agent.hidden_state_cache=CACHE_PATH.
#
#   bash scripts/cache_dataset/run_caching_recogdrive_hidden_state_eval.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_caching_recogdrive_hidden_state.sh (see its --help), with SPLIT [navtest].
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;; esac
SPLIT="${SPLIT:-navtest}" exec bash "$(dirname "${BASH_SOURCE[0]}")/run_caching_recogdrive_hidden_state.sh" "$@"
