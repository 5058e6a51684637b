#!/usr/bin/env bash
# Reinforcement learning (DiffGRPO) of the planner of the 8B VLM through NAVSIM's run_training.py.
#
#   bash scripts/training/run_recogdrive_train_multi_node_rl_8b.sh [--dry-run] [HYDRA OVERRIDES]
#
# As run_recogdrive_train_multi_node_rl_2b.sh (see its --help), with AGENT [recogdrive_8b_rl].
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
help_if_asked "$@"
AGENT="${AGENT:-recogdrive_8b_rl}" exec bash "$HERE/run_recogdrive_train_multi_node_rl_2b.sh" "$@"
