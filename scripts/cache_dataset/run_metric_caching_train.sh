#!/usr/bin/env bash
# Makes the metric caches of the training split, for the reward of reinforcement learning (agent.metric_cache_path).
#
#   bash scripts/cache_dataset/run_metric_caching_train.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_metric_caching.sh (see its --help), with SPLIT [navtrain]. The scenes must be those to train and validate on:
# the same train_test_split, and the same overrides of its scene filter, as in caching of hidden states.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
SPLIT="${SPLIT:-navtrain}" exec bash "$HERE/run_metric_caching.sh" "$@"
