#!/usr/bin/env bash
# Imitation learning of the 2B planner with an exponential moving average of its weights.
#
#   bash scripts/training/run_recogdrive_train_multi_node_ema_2b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_train_multi_node_2b.sh (see its --help), with EMA_DECAY [0.999].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
EMA_DECAY="${EMA_DECAY:-0.999}" exec bash "$HERE/run_recogdrive_train_multi_node_2b.sh" "$@"
