#!/usr/bin/env bash
# Imitation learning of the 2B planner through NAVSIM's run_training.py, on one node or several. Start it once on every
# node; with Slurm: srun --ntasks-per-node=1 bash scripts/training/run_recogdrive_train_multi_node_2b.sh
#
#   bash scripts/training/run_recogdrive_train_multi_node_2b.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact command of this node and run nothing
#   overrides   go to run_training.py and come last, for example agent.imitation.draws_per_scene=8. Joint mode, VLM and
#               planner from image tiles: agent.cache_hidden_state=false agent.vlm.training=lora
#
# Environment (in brackets the defaults):
#   OPENSCENE_DATA_ROOT   must be set, as must NAVSIM_EXP_ROOT, and NUPLAN_MAPS_ROOT with CACHE_PATH=none
#   VLM_PATH              the VLM's folder or hub id; needed in joint mode and without a cache only
#   AGENT                 agent config [recogdrive_2b]
#   SPLIT                 train_test_split [navtrain]
#   CACHE_PATH            hidden states, or image tiles in joint mode, by run_caching_recogdrive_hidden_state.sh
#                         [NAVSIM_EXP_ROOT/AGENT_hidden_state_SPLIT, or AGENT_image_tiles_SPLIT]; none: no cache, the logs
#                         and images are read as training goes
#   CHECKPOINT            weights to start from [none: a new planner]
#   EXPERIMENT            experiment_name [training_AGENT, with EMA_DECAY training_AGENT_ema]
#   EPOCHS, BATCH_SIZE    [200, and 16 scenes per GPU: the published recipe]
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

AGENT="${AGENT:-recogdrive_2b}"
EPOCHS="${EPOCHS:-200}"
BATCH_SIZE="${BATCH_SIZE:-16}"
require_positive EPOCHS BATCH_SIZE
prepare_training
train "trainer.params.max_epochs=$EPOCHS" "dataloader.params.batch_size=$BATCH_SIZE"
