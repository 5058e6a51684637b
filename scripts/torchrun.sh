# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in pretraining and by train.sh, after common.sh. Defines:
#
#   set_torchrun   sets NNODES, NODE_RANK, GPUS_PER_NODE, MASTER_ADDR and MASTER_PORT where they are not set (Slurm's
#                  variables are understood), TORCHRUN: the command that starts this node's processes, and TRAINER: the
#                  trainer's settings that go with it
#   run_ranks COMMAND...   runs or prints a command that starts this node's processes. What would end the script ends them
#                          after their checkpoint, and the script with status 75: the same command, resumed, goes on

# Nothing where there are several nodes and no way to know. A job step may have only some of the job's nodes.
_master_address() {
    local names=()
    if ((NNODES == 1)); then
        echo 127.0.0.1
    elif [[ -n ${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}} ]] && command -v scontrol >/dev/null; then
        mapfile -t names < <(scontrol show hostnames "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}")
        echo "${names[0]:-}"
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

run_ranks() {
    local status=0
    if $DRY_RUN; then
        run_or_print "$@"
        return
    fi
    RECOGDRIVE_PREEMPTED_FILE="$(mktemp)"
    export RECOGDRIVE_PREEMPTED_FILE
    # Raises the 30 s that torchrun, told to end itself, gives its processes; torch without this variable ignores it.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
    trap 'rm -f "$RECOGDRIVE_PREEMPTED_FILE"' EXIT
    run_passing_signals _ranks "$@" || status=$?
    # The processes may have stopped before the script was told to, or before they had anything to save.
    if [[ -s $RECOGDRIVE_PREEMPTED_FILE ]] || { $STOPPING && ((status > 0)); }; then
        status=75
    fi
    return "$status"
}

# Not torchrun: that would kill its processes after a while, and a second signal, as where Slurm has sent it one already,
# would end it without them.
_ranks() {
    local files
    echo "Stopping: training ends after its checkpoint is written" >&2
    files="$(grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status || true)"
    if [[ -n $files ]]; then cut -d/ -f3 <<<"$files"; else echo "$1"; fi
}
