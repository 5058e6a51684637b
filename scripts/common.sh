# Sourced by the scripts in cache_dataset and training, after environment.sh. Defines:
#
#   print_help FILE              the comment at the top of a script
#   read_arguments "$@"          sets DRY_RUN and OVERRIDES from [--dry-run] [HYDRA OVERRIDES]; exits with 2 on others
#   require_variables NAME...    exits with 2 if one is not set
#   require_file NAME...         exits with 2 if a variable is not set or names no file
#   require_whole_number NAME... exits with 2 if a variable is none
#   require_navsim               find_navsim of environment.sh, or exits and says why
#   run_or_print COMMAND...      runs a command, or prints it where DRY_RUN is true

DRY_RUN=false
OVERRIDES=()

_refuse() { echo "$* (see --help)" >&2; exit 2; }

print_help() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$1"; }

read_arguments() {
    local argument
    if [[ ${1:-} == --dry-run ]]; then
        DRY_RUN=true
        shift
    fi
    for argument in "$@"; do
        [[ $argument != -* ]] || _refuse "unknown option $argument"
    done
    OVERRIDES=("$@")
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

require_whole_number() {
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^[0-9]+$ ]] || _refuse "$name must be a whole number, found ${!name}"
    done
}

require_navsim() {
    local status=0
    find_navsim || status=$?
    ((status == 0)) || { echo "${NAVSIM_MISSING:-}" >&2; exit "$status"; }
    export NAVSIM_DEVKIT_ROOT="${NAVSIM_DEVKIT_ROOT:-${NAVSIM_SCRIPT_ROOT%/navsim/planning/script}}"
}

run_or_print() {
    if $DRY_RUN; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}
