#!/usr/bin/env bash
# Reinforcement learning (DiffGRPO) of the 2B planner through NAVSIM's run_training.py, on one node or several. Start it
# once on every node; with Slurm: srun --ntasks-per-node=1 bash scripts/training/run_recogdrive_train_multi_node_rl_2b.sh
#
#   bash scripts/training/run_recogdrive_train_multi_node_rl_2b.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact command of this node and run nothing
#   overrides   go to run_training.py and come last, for example agent.rl.bc_weight=1.0
#
# Environment (in brackets the defaults):
#   REFERENCE_CHECKPOINT  the planner of imitation learning (.ckpt or .safetensors); must be set
#   OPENSCENE_DATA_ROOT   must be set, as must NUPLAN_MAPS_ROOT and NAVSIM_EXP_ROOT
#   AGENT                 agent config [recogdrive_2b_rl]
#   SPLIT                 train_test_split [navtrain]
#   CACHE_PATH            hidden states, by run_caching_recogdrive_hidden_state.sh
#                         [NAVSIM_EXP_ROOT/AGENT without _rl_hidden_state_SPLIT]
#   METRIC_CACHE_PATH     metric caches, by run_metric_caching_train.sh [NAVSIM_EXP_ROOT/metric_cache_SPLIT]
#   CHECKPOINT            weights to start from [those of REFERENCE_CHECKPOINT]
#   EXPERIMENT            experiment_name [training_AGENT]
#   EPOCHS, BATCH_SIZE    [10, and 8 scenes per GPU: the published recipe]
#   REWARD_WORKERS        processes per GPU that compute rewards [4]
#   NNODES, NODE_RANK     number of nodes and which one this is [Slurm's SLURM_NNODES and SLURM_NODEID, else 1 and 0]
#   MASTER_ADDR           address of node 0 [the first of SLURM_JOB_NODELIST, else 127.0.0.1]
#   MASTER_PORT           [29500]
#   GPUS_PER_NODE         [SLURM_GPUS_ON_NODE, else those in CUDA_VISIBLE_DEVICES, else all]; 0: one process on the CPU
#   NAVSIM_DEVKIT_ROOT    a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/environment.sh
source "$HERE/../environment.sh"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/torchrun.sh
source "$HERE/../torchrun.sh"
case "${1:-}" in -h | --help) print_help "$0"; exit 0 ;; esac
read_arguments "$@"
require_variables OPENSCENE_DATA_ROOT NUPLAN_MAPS_ROOT NAVSIM_EXP_ROOT
require_file REFERENCE_CHECKPOINT
[[ -z ${CHECKPOINT:-} ]] || require_file CHECKPOINT

AGENT="${AGENT:-recogdrive_2b_rl}"
SPLIT="${SPLIT:-navtrain}"
CACHE_PATH="${CACHE_PATH:-$NAVSIM_EXP_ROOT/${AGENT%_rl}_hidden_state_$SPLIT}"
METRIC_CACHE_PATH="${METRIC_CACHE_PATH:-$NAVSIM_EXP_ROOT/metric_cache_$SPLIT}"
set_torchrun
require_navsim
START=()
[[ -z ${CHECKPOINT:-} ]] || START=("agent.checkpoint_path='$CHECKPOINT'")

say "NAVSIM v$NAVSIM_MAJOR: agent=$AGENT on $SPLIT, node $NODE_RANK of $NNODES, $GPUS_PER_NODE GPUs"
run_or_print "${TORCHRUN[@]}" "$NAVSIM_SCRIPT_ROOT/run_training.py" "agent=$AGENT" "train_test_split=$SPLIT" \
    "experiment_name=${EXPERIMENT:-training_$AGENT}" "cache_path='$CACHE_PATH'" use_cache_without_dataset=true \
    force_cache_computation=false "agent.reference_policy_checkpoint='$REFERENCE_CHECKPOINT'" "${START[@]}" \
    "agent.metric_cache_path='$METRIC_CACHE_PATH'" "agent.reward.workers=${REWARD_WORKERS:-4}" \
    "trainer.params.max_epochs=${EPOCHS:-10}" trainer.params.gradient_clip_val=1.0 \
    "dataloader.params.batch_size=${BATCH_SIZE:-8}" "${TRAINER[@]}" "${OVERRIDES[@]}"
