# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in evaluation, submission and cache_dataset, after common.sh. Defines:
#
#   set_planner   sets PLANNER, the agent's settings that follow from AGENT, CHECKPOINT, CACHE_PATH and VLM_PATH
#   set_split     sets SPLIT_PATHS, where NAVSIM v2.x finds the second-stage scenes of SPLIT; after require_navsim
#   require_annotations
#                 exits with 2 if the scenes of SPLIT have none
#   set_worker    sets WORKERS, the worker's settings that follow from WORKER, WORKERS_PER_GPU and GPUS_PER_NODE

set_planner() {
    PLANNER=("agent=$AGENT")
    [[ -n ${VLM_PATH:-} ]] || unset VLM_PATH # set and empty would be a path for Hydra
    if [[ $AGENT == recogdrive_vlm_* ]]; then
        [[ -z ${CHECKPOINT:-} ]] || _refuse "CHECKPOINT is set, but AGENT=$AGENT is the VLM alone, without a planner"
        [[ -z ${CACHE_PATH:-} ]] || _refuse "CACHE_PATH is set, but AGENT=$AGENT writes text, which no cache holds"
        [[ -n ${VLM_PATH:-} ]] || overridden agent.vlm.path || _refuse "VLM_PATH is not set"
        return
    fi
    if ! overridden agent.checkpoint_path; then
        require_file CHECKPOINT
        PLANNER+=("agent.checkpoint_path=$(quoted "$CHECKPOINT")")
    fi
    if [[ -n ${CACHE_PATH:-} ]]; then
        require_folder CACHE_PATH "fill it with scripts/cache_dataset/run_caching_recogdrive_hidden_state_eval.sh"
        PLANNER+=("agent.hidden_state_cache=$(quoted "$CACHE_PATH")")
    elif [[ -z ${VLM_PATH:-} ]] && ! overridden agent.vlm.path && ! overridden agent.hidden_state_cache; then
        _refuse "set VLM_PATH to run the VLM, or CACHE_PATH to take its hidden states of $SPLIT from a cache"
    fi
}

set_split() {
    local scenes=
    SPLIT_PATHS=()
    if [[ $SPLIT == *two_stage* && $NAVSIM_MAJOR -lt 2 ]]; then
        _refuse "SPLIT=$SPLIT needs NAVSIM v2.x, found v$NAVSIM_MAJOR"
    fi
    case "$SPLIT" in
        navhard_two_stage | warmup_two_stage) scenes=synthetic_scene_pickles ;;
        private_test_hard_two_stage) scenes=openscene_meta_datas ;;
        navtest_two_stage | navsafe_two_stage | warmup_navsafe_two_stage_extended)
            _refuse "SPLIT=$SPLIT: NAVSIM's split lists no second-stage scenes, without which its runners fail after" \
                "stage one; navhard_two_stage, warmup_two_stage and private_test_hard_two_stage have them"
            ;;
        *two_stage*)
            if ! overridden synthetic_scenes_path || ! overridden synthetic_sensor_path; then
                _refuse "SPLIT=$SPLIT: say where its second stage lies:" \
                    "synthetic_scenes_path=FOLDER synthetic_sensor_path=FOLDER"
            fi
            ;;
    esac
    [[ -z $scenes ]] || SPLIT_PATHS=(
        "synthetic_sensor_path=$(quoted "$OPENSCENE_DATA_ROOT/$SPLIT/sensor_blobs")"
        "synthetic_scenes_path=$(quoted "$OPENSCENE_DATA_ROOT/$SPLIT/$scenes")"
    )
}

require_annotations() {
    [[ $SPLIT != private_test* ]] ||
        _refuse "SPLIT=$SPLIT has no annotations, without which NAVSIM can only submit: see scripts/submission"
}

set_worker() {
    GPUS_PER_NODE="${GPUS_PER_NODE:-$(visible_gpus | wc -l)}"
    require_whole_number GPUS_PER_NODE
    if [[ -z ${WORKER:-} ]]; then
        WORKER=ray_shared_gpus
        ((GPUS_PER_NODE > 0)) || WORKER=sequential
    fi
    WORKERS=("worker=$WORKER")
    if [[ $WORKER == ray_shared_gpus ]]; then
        ((GPUS_PER_NODE > 0)) || _refuse "WORKER=ray_shared_gpus, but there is no GPU: WORKER=ray_distributed_no_torch"
        # From a cache only the small planner runs, and NAVSIM's scorer on the CPU takes most of the time.
        WORKERS_PER_GPU="${WORKERS_PER_GPU:-$([[ -n ${CACHE_PATH:-} ]] && echo 4 || echo 1)}"
        require_positive WORKERS_PER_GPU
        WORKERS+=("worker.gpus=$GPUS_PER_NODE" "worker.workers_per_gpu=$WORKERS_PER_GPU")
    elif [[ -n ${WORKERS_PER_GPU:-} ]]; then
        _refuse "WORKERS_PER_GPU is for WORKER=ray_shared_gpus, found WORKER=$WORKER"
    fi
    ((GPUS_PER_NODE > 0)) || WORKERS+=(agent.device=cpu)
}
