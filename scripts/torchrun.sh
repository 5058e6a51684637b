# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in pretraining and by train.sh, after common.sh. Defines:
#
#   set_torchrun   sets NNODES, NODE_RANK, GPUS_PER_NODE, MASTER_ADDR and MASTER_PORT where they are not set (Slurm's
#                  variables are understood), TORCHRUN: the command that starts this node's processes, and TRAINER: the
#                  trainer's settings that go with it
#   run_ranks COMMAND...   runs or prints a command that starts this node's processes. What would end the script ends them
#                          after their checkpoint, and the script with status 75: the same command, resumed, goes on

# Nothing where there are several nodes and no way to know. The nodes may be those of a job step, or, where each node has
# a step of its own, those of the job.
_master_address() {
    local list names
    if ((NNODES == 1)); then
        echo 127.0.0.1
        return
    fi
    command -v scontrol >/dev/null || return 0
    for list in "${SLURM_STEP_NODELIST:-}" "${SLURM_JOB_NODELIST:-}"; do
        [[ -n $list ]] || continue
        mapfile -t names < <(scontrol show hostnames "$list")
        if ((${#names[@]} == NNODES)); then
            echo "${names[0]}"
            return
        fi
    done
}

set_torchrun() {
    set_nodes
    GPUS_PER_NODE="${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-$(visible_gpus | wc -l)}}"
    MASTER_PORT="${MASTER_PORT:-29500}"
    require_whole_number GPUS_PER_NODE
    require_positive MASTER_PORT
    ((MASTER_PORT <= 65535)) || _refuse "MASTER_PORT must be at most 65535, found $MASTER_PORT"
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
# would end it without them. A wrapper, such as pyenv's, has children that are no ranks.
_ranks() {
    local child found=false
    echo "Stopping: training ends after its checkpoint is written" >&2
    while read -r child; do
        if grep -qszE '^(LOCAL_RANK|ACCELERATE_MIXED_PRECISION)=' "/proc/$child/environ"; then
            echo "$child"
            found=true
        fi
    done < <(grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status | cut -d/ -f3)
    $found || echo "$1"
}
