# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in training, after common.sh. Defines:
#
#   prepare_training     sets AGENT, SPLIT, CACHE_PATH, EXPERIMENT and what follows from CHECKPOINT, EMA_DECAY, RESUME and
#                        the variables of torchrun.sh, after checking them; finds NAVSIM
#   train OVERRIDES...   runs or prints run_training.py on this node with them; those of the command line come last
# The environment is described in training/run_recogdrive_train_multi_node_2b.sh.

# shellcheck source=scripts/torchrun.sh
source "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"

prepare_training() {
    require_variables OPENSCENE_DATA_ROOT NAVSIM_EXP_ROOT
    [[ -z ${CHECKPOINT:-} ]] || require_file CHECKPOINT
    SPLIT="${SPLIT:-navtrain}"
    EXPERIMENT="${EXPERIMENT:-training_$AGENT${EMA_DECAY:+_ema}}"
    CACHE_PATH="${CACHE_PATH:-$NAVSIM_EXP_ROOT/${AGENT%_rl}_$(cache_kind)_$SPLIT}"

    COMMON=("agent=$AGENT" "train_test_split=$SPLIT" "experiment_name=$(quoted "$EXPERIMENT")")
    if [[ $CACHE_PATH == none ]]; then
        require_variables NUPLAN_MAPS_ROOT
        COMMON+=(cache_path=null)
    else
        require_folder CACHE_PATH "fill it with scripts/cache_dataset/run_caching_recogdrive_hidden_state.sh"
        COMMON+=("cache_path=$(quoted "$CACHE_PATH")" use_cache_without_dataset=true)
    fi
    COMMON+=(force_cache_computation=false)
    [[ -z ${CHECKPOINT:-} ]] || COMMON+=("agent.checkpoint_path=$(quoted "$CHECKPOINT")")
    if [[ -n ${EMA_DECAY:-} ]]; then
        [[ $EMA_DECAY =~ ^0?\.[0-9]*[1-9][0-9]*$ ]] || _refuse "EMA_DECAY must be between 0 and 1, found $EMA_DECAY"
        COMMON+=("agent.ema.decay=$EMA_DECAY")
    fi
    case "${RESUME:-}" in
        "" | 0) ;;
        1 | auto) COMMON+=(agent.resume=auto) ;;
        *)
            [[ -e $RESUME ]] || _refuse "RESUME must be 1 or auto, or a run's folder or checkpoint, found $RESUME"
            COMMON+=("agent.resume=$(quoted "$RESUME")")
            ;;
    esac
    set_torchrun
    require_navsim
}

train() {
    say "NAVSIM v$NAVSIM_MAJOR: agent=$AGENT on $SPLIT, node $NODE_RANK of $NNODES, $GPUS_PER_NODE GPUs"
    run_ranks "${TORCHRUN[@]}" "$NAVSIM_SCRIPT_ROOT/run_training.py" "${COMMON[@]}" "$@" \
        trainer.params.gradient_clip_val=1.0 "${TRAINER[@]}" "${OVERRIDES[@]}"
}
