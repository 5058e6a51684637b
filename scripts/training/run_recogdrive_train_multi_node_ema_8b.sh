#!/usr/bin/env bash
# Imitation learning of the planner of the 8B VLM with an exponential moving average of its weights.
#
#   bash scripts/training/run_recogdrive_train_multi_node_ema_8b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_train_multi_node_2b.sh (see its --help), with AGENT [recogdrive_8b] and EMA_DECAY [0.999].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
AGENT="${AGENT:-recogdrive_8b}" EMA_DECAY="${EMA_DECAY:-0.999}" exec bash "$HERE/run_recogdrive_train_multi_node_2b.sh" "$@"
