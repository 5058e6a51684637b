# shellcheck shell=bash disable=SC2034
# Sourced by the scripts in the folders beside it: sources environment.sh and defines
#
#   read_arguments "$@"          sets DRY_RUN and OVERRIDES from [--dry-run] [HYDRA OVERRIDES]; prints the help where it is
#                                asked for; exits with 2 on other options, and on what is no override
#   read_leading_options "$@"    the same, but only leading --help and --dry-run; the rest becomes ARGUMENTS as it is
#   help_if_asked "$@"           for scripts that pass everything on to another one
#   require_variables NAME...    exits with 2 if one is not set
#   require_file NAME...         exits with 2 if a variable is not set or names no file
#   require_folder NAME FIX      exits with 2 and says FIX if a variable names no folder; not in a dry run, since earlier
#                                stages may not have made it yet
#   require_whole_number NAME... exits with 2 if a variable is none, or one of more than 9 digits
#   require_positive NAME...     exits with 2 if a variable is no whole number above 0
#   require_navsim               find_navsim of environment.sh, or exits and says why
#   overridden NAME              whether OVERRIDES sets it; its value is then in VALUE
#   cache_kind                   hidden_state, or image_tiles where OVERRIDES ask for joint mode
#   quoted TEXT                  TEXT as one Hydra value, whatever it holds
#   visible_gpus                 prints the GPUs of this node as CUDA_VISIBLE_DEVICES names them, one per line
#   set_nodes                    sets NNODES and NODE_RANK where they are not set (Slurm's variables are understood)
#   newest EXPERIMENT PATTERN    the last written file of that name below NAVSIM_EXP_ROOT/EXPERIMENT
#   remember_files EXPERIMENT PATTERN
#                                what is there before a run, for newest_since; exits with 2 where OVERRIDES move the run
#   newest_since EXPERIMENT PATTERN
#                                the last one written since remember_files, or exits with 1
#   run_or_print COMMAND...      runs a command, or prints it where DRY_RUN is true

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

DRY_RUN=false
OVERRIDES=()
ARGUMENTS=()
VALUE=

_refuse() { echo "$* (see --help)" >&2; exit 2; }

_print_help() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }

help_if_asked() {
    case "${1:-}" in -h | --help) _print_help; exit 0 ;; esac
}

read_leading_options() {
    while (($# > 0)); do
        case "$1" in
            -h | --help) _print_help; exit 0 ;;
            --dry-run) DRY_RUN=true; shift ;;
            *) break ;;
        esac
    done
    ARGUMENTS=("$@")
}

read_arguments() {
    local argument
    for argument in "$@"; do
        case "$argument" in
            -h | --help) _print_help; exit 0 ;;
            --dry-run) DRY_RUN=true ;;
            -*) _refuse "unknown option $argument" ;;
            *=* | \~*) OVERRIDES+=("$argument") ;;
            *) _refuse "$argument is no Hydra override: expected NAME=VALUE" ;;
        esac
    done
}

require_variables() {
    local name
    for name in "$@"; do
        [[ -n ${!name:-} ]] || _refuse "$name is not set"
    done
}

require_file() {
    local name
    require_variables "$@"
    for name in "$@"; do
        [[ -f ${!name} ]] || _refuse "$name=${!name} is not a file"
    done
}

require_folder() {
    $DRY_RUN || [[ -d ${!1} ]] || _refuse "$1=${!1} is not a folder: $2"
}

require_whole_number() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^(0|[1-9][0-9]*)$ ]] || _refuse "$name must be a whole number, found ${!name}"
        # The shell's arithmetic goes wrong without a word where a number is too large for it.
        ((${#BASH_REMATCH[0]} <= 9)) || _refuse "$name must be a whole number of at most 9 digits, found ${!name}"
    done
}

require_positive() {
    local name
    require_whole_number "$@"
    for name in "$@"; do
        ((${!name} >= 1)) || _refuse "$name must be at least 1"
    done
}

require_navsim() {
    local status=0
    find_navsim || status=$?
    ((status == 0)) || { [[ -z ${NAVSIM_MISSING:-} ]] || echo "$NAVSIM_MISSING" >&2; exit "$status"; }
    export NAVSIM_DEVKIT_ROOT="${NAVSIM_DEVKIT_ROOT:-${NAVSIM_SCRIPT_ROOT%/navsim/planning/script}}"
}

overridden() {
    local override name
    VALUE=
    for override in "${OVERRIDES[@]}"; do
        name="${override%%=*}"
        name="${name##+}"
        [[ ${name##+} != "$1" ]] || VALUE="${override#*=}"
    done
    [[ -n $VALUE ]]
}

cache_kind() {
    if overridden agent.cache_hidden_state && [[ ${VALUE,,} == false ]]; then
        echo image_tiles
    else
        echo hidden_state
    fi
}

# Hydra's quoting: a backslash counts only before a quote or the end. OmegaConf would fill in ${...}; for it, a backslash
# counts only before that.
quoted() {
    printf "'%s'" "$(printf %s "$1" | sed -E -e "s/(\\\\+)('|\$)/\1\1\2/g" -e "s/'/\\\\'/g" -e 's/(\\*)\$\{/\1\1\\${/g')"
}

visible_gpus() {
    local listed
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        # CUDA itself ignores what follows the first number that is not one of a GPU; UUIDs hold hyphens too.
        tr -d ' \t' <<<"$CUDA_VISIBLE_DEVICES" | tr , '\n' | sed '/^[^0-9GM]/,$d;/^$/d'
    elif command -v nvidia-smi >/dev/null && listed="$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)"; then
        [[ -z $listed ]] || echo "$listed"
    fi
}

set_nodes() {
    NNODES="${NNODES:-${SLURM_NNODES:-1}}"
    NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"
    require_whole_number NNODES NODE_RANK
    if ((NODE_RANK >= NNODES)); then
        _refuse "NODE_RANK=$NODE_RANK does not fit NNODES=$NNODES: ranks are 0 to $((NNODES - 1))"
    fi
    if ((${SLURM_LOCALID:-0} > 0)); then
        _refuse "SLURM_LOCALID=$SLURM_LOCALID: this script starts a node's processes itself; use srun --ntasks-per-node=1"
    fi
}

_files() { [[ ! -d $NAVSIM_EXP_ROOT/$1 ]] || find "$NAVSIM_EXP_ROOT/$1" -name "$2" -printf '%T@ %p\n' | sort -n; }

newest() { _files "$1" "$2" | tail -n 1 | cut -d' ' -f2-; }

remember_files() {
    local name
    for name in experiment_name output_dir; do
        ! overridden "$name" || _refuse "$name=$VALUE hides where the result is written: set EXPERIMENT in its place"
    done
    REMEMBERED="$(_files "$1" "$2")"
}

# Compares with what was there, not with the clock: a file server may have another.
newest_since() {
    local found
    found="$(_files "$1" "$2" | grep -vxFf <(echo "$REMEMBERED") | tail -n 1 | cut -d' ' -f2-)" || true
    if [[ -z $found ]]; then
        echo "The run has ended, but wrote no $2 below $NAVSIM_EXP_ROOT/$1: see its log" >&2
        return 1
    fi
    echo "$found"
}

run_or_print() {
    if $DRY_RUN; then
        printf '%q ' "$@"
        echo
    else
        run_command "$@"
    fi
}

# In a terminal its signals reach the command by themselves. Elsewhere what ends this script would leave it behind.
run_command() {
    if [[ -t 0 ]]; then
        "$@"
        return
    fi
    local status=0
    run_passing_signals _group "$@" || status=$?
    # One that was asked to end, and ended well, is not to be followed by the next.
    if $STOPPING && ((status == 0)); then
        status=143
    fi
    return "$status"
}

_group() { echo "-$1"; }

# run_passing_signals WHOM COMMAND...: runs the command and gives its status. What would end this script goes, once and as
# SIGTERM, to the processes that WHOM prints, given the command's.
run_passing_signals() {
    local status=127 before
    WHOM="$1" STOPPING=false COMMAND=
    shift
    trap _pass_signal TERM INT HUP QUIT USR1
    # With job control, a process group of its own: a terminal's interrupt reaches this shell alone. SIGUSR1, which would
    # end torchrun and leave its processes behind, is ignored by what it starts until it listens.
    set -m
    (
        trap - TERM INT HUP QUIT EXIT
        trap '' USR1
        exec "$@"
    ) </dev/null &
    COMMAND=$!
    set +m
    ! $STOPPING || kill -TERM -- "-$COMMAND" # asked before there was a command to tell
    until # a signal ends only the waiting
        INTERRUPTED=false before=$status status=0
        wait "$COMMAND" 2>/dev/null || status=$?
        ! $INTERRUPTED
    do :; done
    ((status != 127)) || status=$before # collected already, when the signal came
    trap - TERM INT HUP QUIT USR1
    return "$status"
}

_pass_signal() {
    INTERRUPTED=true
    ! $STOPPING || return 0
    STOPPING=true
    # shellcheck disable=SC2046
    [[ -z $COMMAND ]] || kill -TERM -- $("$WHOM" "$COMMAND") 2>/dev/null || true
}
