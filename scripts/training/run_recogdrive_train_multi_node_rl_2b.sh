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
#   OPENSCENE_DATA_ROOT   must be set, as must NAVSIM_EXP_ROOT
#   AGENT                 agent config [recogdrive_2b_rl]
#   SPLIT                 train_test_split [navtrain]
#   CACHE_PATH            hidden states, by run_caching_recogdrive_hidden_state.sh
#                         [NAVSIM_EXP_ROOT/AGENT without _rl_hidden_state_SPLIT]
#   METRIC_CACHE_PATH     metric caches, by run_metric_caching_train.sh [NAVSIM_EXP_ROOT/metric_cache_SPLIT]
#   CHECKPOINT            weights to start from [those of REFERENCE_CHECKPOINT]
#   EXPERIMENT            experiment_name [training_AGENT, with EMA_DECAY training_AGENT_ema]
#   EPOCHS, BATCH_SIZE    [10, and 8 scenes per GPU: the published recipe]
#   REWARD_WORKERS        processes per GPU that compute rewards [4]; 0: in the training process
#   EMA_DECAY             average the weights with this decay (agent.ema.decay) [no average]
#   RESUME                1 or auto: go on with the newest run of EXPERIMENT, or begin where there is none;
#                         or a run's folder or checkpoint [begin]
#   NNODES, NODE_RANK     number of nodes and which one this is [Slurm's SLURM_NNODES and SLURM_NODEID, else 1 and 0]
#   MASTER_ADDR           address of node 0 [of several the first of Slurm's step or job; of one 127.0.0.1]
#   MASTER_PORT           [29500]
#   GPUS_PER_NODE         [SLURM_GPUS_ON_NODE, else those in CUDA_VISIBLE_DEVICES, else all]; 0: one process on the CPU
#   NAVSIM_DEVKIT_ROOT    a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/train.sh
source "$HERE/../train.sh"
read_arguments "$@"
require_variables OPENSCENE_DATA_ROOT NAVSIM_EXP_ROOT

AGENT="${AGENT:-recogdrive_2b_rl}"
EPOCHS="${EPOCHS:-10}"
BATCH_SIZE="${BATCH_SIZE:-8}"
REWARD_WORKERS="${REWARD_WORKERS:-4}"
require_positive EPOCHS BATCH_SIZE
require_whole_number REWARD_WORKERS
require_file REFERENCE_CHECKPOINT
prepare_training
METRIC_CACHE_PATH="${METRIC_CACHE_PATH:-$NAVSIM_EXP_ROOT/metric_cache_$SPLIT}"
require_folder METRIC_CACHE_PATH "fill it with scripts/cache_dataset/run_metric_caching_train.sh"
train "agent.reference_policy_checkpoint=$(quoted "$REFERENCE_CHECKPOINT")" \
    "agent.metric_cache_path=$(quoted "$METRIC_CACHE_PATH")" "agent.reward.workers=$REWARD_WORKERS" \
    "trainer.params.max_epochs=$EPOCHS" "dataloader.params.batch_size=$BATCH_SIZE"
