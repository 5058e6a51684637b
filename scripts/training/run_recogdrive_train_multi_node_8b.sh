#!/usr/bin/env bash
# Imitation learning of the planner of the 8B VLM through NAVSIM's run_training.py.
#
#   bash scripts/training/run_recogdrive_train_multi_node_8b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_train_multi_node_2b.sh (see its --help), with AGENT [recogdrive_8b].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
AGENT="${AGENT:-recogdrive_8b}" exec bash "$HERE/run_recogdrive_train_multi_node_2b.sh" "$@"
