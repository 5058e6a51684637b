#!/usr/bin/env bash
# Driving pretraining (stage 1): fine-tunes InternVL3-2B on question-answer data, on one node or several. Start it once on
# every node; with Slurm: srun --ntasks-per-node=1 bash THIS_SCRIPT
#
#   bash scripts/pretraining/internvl3_2b_dynamic_res_2nd_finetune_recogdrive_pretrain.sh [--dry-run] [ARGUMENTS]
#
#   --dry-run   print the exact command of this node and run nothing
#   arguments   go to python -m navsim_recogdrive.pretraining.finetuning and come last, for example
#               --freeze vision, --training lora, --layout hub; its --help lists them all
#
# A run that was stopped is continued by the same command: --resume is always given.
#
# Environment (in brackets the defaults):
#   MIXTURE           JSON file of data sets in InternVL's layout; must be set
#   OUTPUT            folder for checkpoints and the model; must be set
#   MODEL             folder or hub id of the base model [OpenGVLab/InternVL3-2B]
#   ACCELERATE_CONFIG a configuration of Hugging Face accelerate, such as scripts/pretraining/fsdp.yaml, in place of plain
#                     data parallelism []
#   NNODES, NODE_RANK number of nodes and which one this is [Slurm's SLURM_NNODES and SLURM_NODEID, else 1 and 0]
#   MASTER_ADDR       address of node 0 [of several the first of Slurm's step or job; of one 127.0.0.1]
#   MASTER_PORT       [29500]
#   GPUS_PER_NODE     [SLURM_GPUS_ON_NODE, else those in CUDA_VISIBLE_DEVICES, else all]; 0: one process on the CPU
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/torchrun.sh
source "$HERE/../torchrun.sh"
read_leading_options "$@"
require_variables OUTPUT
require_file MIXTURE
[[ -z ${ACCELERATE_CONFIG:-} ]] || require_file ACCELERATE_CONFIG

set_torchrun
LAUNCH=("${TORCHRUN[@]}")
if [[ -n ${ACCELERATE_CONFIG:-} ]]; then
    ((GPUS_PER_NODE > 0)) || _refuse "ACCELERATE_CONFIG is set, but GPUS_PER_NODE=0 asks for one process on the CPU"
    LAUNCH=(
        python -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" "--num_machines=$NNODES"
        "--machine_rank=$NODE_RANK" "--num_processes=$((NNODES * GPUS_PER_NODE))" "--main_process_ip=$MASTER_ADDR"
        "--main_process_port=$MASTER_PORT"
    )
fi
SETTINGS=(--model "${MODEL:-OpenGVLab/InternVL3-2B}" --mixture "$MIXTURE" --output "$OUTPUT" --resume)
((GPUS_PER_NODE > 0)) || SETTINGS+=(--cpu)
run_ranks "${LAUNCH[@]}" -m navsim_recogdrive.pretraining.finetuning "${SETTINGS[@]}" "${ARGUMENTS[@]}"
