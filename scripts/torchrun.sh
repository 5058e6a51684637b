# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in pretraining and by train.sh, after common.sh. Defines:
#
#   set_torchrun   sets NNODES, NODE_RANK, GPUS_PER_NODE, MASTER_ADDR and MASTER_PORT where they are not set (Slurm's
#                  variables are understood), TORCHRUN: the command that starts this node's processes, and TRAINER: the
#                  trainer's settings that go with it

# Nothing where there are several nodes and no way to know.
_master_address() {
    if [[ -n ${SLURM_JOB_NODELIST:-} ]] && command -v scontrol >/dev/null; then
        scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1
    elif ((NNODES == 1)); then
        echo 127.0.0.1
    fi
}

set_torchrun() {
    set_nodes
    GPUS_PER_NODE="${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-$(visible_gpus | wc -l)}}"
    MASTER_PORT="${MASTER_PORT:-29500}"
    require_whole_number GPUS_PER_NODE MASTER_PORT
    MASTER_ADDR="${MASTER_ADDR:-$(_master_address)}"
    if [[ -z $MASTER_ADDR ]]; then
        _refuse "MASTER_ADDR is not set, and with NNODES=$NNODES every node must know node 0;" \
            "it is found only under Slurm, where its scontrol can be called"
    fi
    # NAVSIM's trainer takes all GPUs of the node and one node unless it is told.
    TRAINER=("trainer.params.num_nodes=$NNODES")
    if ((GPUS_PER_NODE > 0)); then
        TRAINER+=("+trainer.params.devices=$GPUS_PER_NODE")
    else
        TRAINER+=(+trainer.params.devices=1 trainer.params.accelerator=cpu trainer.params.precision=32)
        TRAINER+=(dataloader.params.pin_memory=false)
    fi
    TORCHRUN=(
        python -m torch.distributed.run "--nnodes=$NNODES" "--node_rank=$NODE_RANK"
        "--nproc_per_node=$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))" "--master_addr=$MASTER_ADDR"
        "--master_port=$MASTER_PORT"
    )
}
