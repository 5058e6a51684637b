#!/usr/bin/env bash
# The test command. Sets up an environment and runs every test that can run here.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS]
#
# One process per core (TEST_PROCESSES=N for another number, 0 for none); a file's tests stay together.
#
# Tests marked "navsim" run against the NAVSIM that is importable, or NAVSIM_DEVKIT_ROOT; where there is none they skip,
# saying so. To run them against further versions, name their checkouts:
#
#   NAVSIM_V1_DEVKIT_ROOT=/path/to/navsim-v1.1 NAVSIM_V2_DEVKIT_ROOT=/path/to/navsim-v2.2 bash scripts/test.sh
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
cd "$REPOSITORY_ROOT"

for name in NAVSIM_V1_DEVKIT_ROOT NAVSIM_V2_DEVKIT_ROOT; do
    if [[ -n ${!name:-} && ! -f ${!name}/navsim/agents/abstract_agent.py ]]; then
        echo "$name=${!name} is not a NAVSIM checkout (no navsim/agents/abstract_agent.py)" >&2
        exit 2
    fi
done

prepare_environment test
: "${NAVSIM_DEVKIT_ROOT:=${NAVSIM_V2_DEVKIT_ROOT:-}}"
status=0
find_navsim || status=$?
case $status in
    0)
        prepare_environment test,navsim
        say "NAVSIM v$NAVSIM_MAJOR: $NAVSIM_SCRIPT_ROOT"
        ;;
    1) say "$NAVSIM_MISSING: tests marked navsim will skip" ;;
    *) exit "$status" ;;
esac
# Files in their own order: the runner chains, few tests but long ones, come early and not at the end one after the other.
parallel=(-n "${TEST_PROCESSES:-auto}" --dist loadfile --no-loadscope-reorder)
python -m pytest "${parallel[@]}" "$@"

if [[ -n ${NAVSIM_V1_DEVKIT_ROOT:-} ]]; then
    say "The navsim tests once more, with $NAVSIM_V1_DEVKIT_ROOT"
    status=0
    PYTHONPATH="$NAVSIM_V1_DEVKIT_ROOT${PYTHONPATH:+:$PYTHONPATH}" \
        python -m pytest -m navsim "${parallel[@]}" "$@" || status=$?
    [[ $status -eq 0 || $status -eq 5 ]] || exit "$status" # 5: the arguments selected no navsim test
fi
