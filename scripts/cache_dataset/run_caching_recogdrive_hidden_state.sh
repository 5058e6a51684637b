#!/usr/bin/env bash
# Caches the VLM's hidden states of a split through NAVSIM's run_dataset_caching.py: one process per GPU, each with logs
# of about the same number of scenes, on one node or several. Run it again to continue: what is complete is left alone,
# what a killed run left damaged is computed again. Scenes that fail, or whose images cannot be read, are left out and
# listed at the end with their reasons; the exit status is 0 all the same, and the next run tries them again.
#
#   bash scripts/cache_dataset/run_caching_recogdrive_hidden_state.sh [--dry-run] [HYDRA OVERRIDES]
#
#   --dry-run   print the exact commands of this node and run nothing
#   overrides   go to every run_dataset_caching.py, for example agent.cache_mode=int8
#
# Environment (in brackets the defaults):
#   VLM_PATH             the VLM's folder or hub id; must be set, or agent.vlm.path given
#   OPENSCENE_DATA_ROOT  must be set, as must NUPLAN_MAPS_ROOT and NAVSIM_EXP_ROOT
#   AGENT                agent config [recogdrive_2b]; recogdrive_8b for the 8B VLM
#   SPLIT                train_test_split [navtrain]; of navhard_two_stage and warmup_two_stage (v2.x) both stages
#   CACHE_PATH           the cache [NAVSIM_EXP_ROOT/AGENT_hidden_state_SPLIT, or AGENT_image_tiles_SPLIT with
#                        agent.cache_hidden_state=false]; with several nodes on a shared disk
#   GPUS_PER_NODE        GPUs of a node to use [those in CUDA_VISIBLE_DEVICES, else all]; 0: the CPU
#   PROCESSES_PER_GPU    [1]; 2 where preparing images, not the GPU, is the limit; without a GPU: processes of a node
#   THREADS_PER_PROCESS  threads that decode images, prepare them and compress beside the GPU [4]; 1: none beside it
#   NNODES, NODE_RANK    number of nodes and which one this is [Slurm's SLURM_NNODES and SLURM_NODEID, else 1 and 0]:
#                        start this script once on every node (srun --ntasks-per-node=1)
#   LOG_DIR              one log per process [NAVSIM_EXP_ROOT/caching_logs/AGENT_SPLIT]
#   NAVSIM_DEVKIT_ROOT   a NAVSIM checkout where NAVSIM is not importable
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=scripts/common.sh
source "$HERE/../common.sh"
# shellcheck source=scripts/planning.sh
source "$HERE/../planning.sh"
read_arguments "$@"
require_variables OPENSCENE_DATA_ROOT NUPLAN_MAPS_ROOT NAVSIM_EXP_ROOT

AGENT="${AGENT:-recogdrive_2b}"
SPLIT="${SPLIT:-navtrain}"
PROCESSES_PER_GPU="${PROCESSES_PER_GPU:-1}"
THREADS_PER_PROCESS="${THREADS_PER_PROCESS:-4}"
CACHE_PATH="${CACHE_PATH:-$NAVSIM_EXP_ROOT/${AGENT}_$(cache_kind)_$SPLIT}"
LOG_DIR="${LOG_DIR:-$NAVSIM_EXP_ROOT/caching_logs/${AGENT}_$SPLIT}"

mapfile -t GPUS < <(visible_gpus) # Slurm may have given this job some of the node's only
GPUS_PER_NODE="${GPUS_PER_NODE:-${#GPUS[@]}}"
set_nodes
require_whole_number GPUS_PER_NODE
require_positive PROCESSES_PER_GPU THREADS_PER_PROCESS
if ((GPUS_PER_NODE > ${#GPUS[@]})); then
    _refuse "GPUS_PER_NODE=$GPUS_PER_NODE, but this node shows ${#GPUS[@]} GPUs (nvidia-smi, CUDA_VISIBLE_DEVICES)"
fi
DEVICE=() # auto takes a GPU where there is one
((GPUS_PER_NODE > 0)) || DEVICE=(agent.device=cpu)
PER_NODE=$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE * PROCESSES_PER_GPU : PROCESSES_PER_GPU))

require_annotations
require_navsim
set_split

say "NAVSIM v$NAVSIM_MAJOR: dividing $SPLIT among $((NNODES * PER_NODE)) processes"
SHARDS="$(python -m navsim_recogdrive.agents.log_shards --shards "$((NNODES * PER_NODE))" "agent=$AGENT" \
    "train_test_split=$SPLIT" "${OVERRIDES[@]}")"
mapfile -t SHARDS <<<"$SHARDS"

# In threads, not processes: they share one VLM.
WORKER=(worker=single_machine_thread_pool "worker.max_workers=$THREADS_PER_PROCESS")
((THREADS_PER_PROCESS > 1)) || WORKER=(worker=sequential)

$DRY_RUN || mkdir -p "$LOG_DIR"
PIDS=() NAMES=()
stop() {
    trap - INT TERM HUP QUIT USR1
    echo "stopping; run this script again to continue" >&2
    ((${#PIDS[@]} == 0)) || kill "${PIDS[@]}" 2>/dev/null || true
    wait
    exit 130
}
trap stop INT TERM HUP QUIT USR1
for ((process = 0; process < PER_NODE; process++)); do
    shard=$((NODE_RANK * PER_NODE + process))
    scenes="${SHARDS[shard]%%$'\t'*}"
    logs="${SHARDS[shard]#*$'\t'}"
    if ((scenes == 0)); then
        say "Shard $shard has no scene: fewer logs than processes"
        continue
    fi
    command=(
        python "$NAVSIM_SCRIPT_ROOT/run_dataset_caching.py" "agent=$AGENT" "train_test_split=$SPLIT"
        "experiment_name=caching_${AGENT}_$SPLIT/shard_$shard" "cache_path=$(quoted "$CACHE_PATH")" "${WORKER[@]}"
        force_cache_computation=false "${SPLIT_PATHS[@]}" "${DEVICE[@]}" "${OVERRIDES[@]}" "train_test_split.scene_filter.log_names=$logs"
    )
    environment=()
    ((GPUS_PER_NODE == 0)) || environment=("CUDA_VISIBLE_DEVICES=${GPUS[process / PROCESSES_PER_GPU]}")
    log="$LOG_DIR/shard_$shard.log"
    if $DRY_RUN; then
        printf '%q ' env "${environment[@]}" "${command[@]}"
        printf '>%q 2>&1\n' "$log"
        continue
    fi
    say "Shard $shard: $scenes scenes${SPLIT_PATHS:+ and their second stage}${environment[0]:+, ${environment[0]}}, $log"
    env "${environment[@]}" "${command[@]}" >"$log" 2>&1 &
    PIDS+=($!) NAMES+=("$shard")
done
! $DRY_RUN || exit 0

failed=()
for index in "${!PIDS[@]}"; do
    wait "${PIDS[index]}" || failed+=("${NAMES[index]}")
done
PIDS=()
# What the processes say of scenes that could not be cached, or that kept one from starting: a line and one per scene.
LISTS='[0-9]+ scenes could not be cached|[0-9]+ scenes, whose images cannot be read|images of none of the [0-9]+ scenes'
UNCACHED="$(for shard in "${NAMES[@]}"; do
    awk -v lists="$LISTS" '$0 ~ lists {on = 1; print; next} on && /^  / {print; next} {on = 0}' \
        "$LOG_DIR/shard_$shard.log"
done)"
[[ -z $UNCACHED ]] || echo "$UNCACHED"
if ((${#failed[@]} > 0)); then
    for shard in "${failed[@]}"; do
        echo "Shard $shard failed; the end of $LOG_DIR/shard_$shard.log:" >&2
        tail -n 5 "$LOG_DIR/shard_$shard.log" >&2
    done
    echo "${#failed[@]} of ${#NAMES[@]} processes failed; run this script again to continue" >&2
    exit 1
fi
say "Done${UNCACHED:+, but for the scenes above}: $CACHE_PATH"
