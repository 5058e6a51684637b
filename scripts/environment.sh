# shellcheck shell=bash disable=SC2034
# Sourced by the scripts that set up their own environment (quickstart.sh, test.sh, .ci/run). Defines:
#
#   prepare_environment EXTRAS   an environment with this package and EXTRAS (comma separated) installed
#   find_navsim                  sets NAVSIM_SCRIPT_ROOT and NAVSIM_MAJOR if NAVSIM can be used; else returns 1 and says
#                                why in NAVSIM_MISSING; returns 2 if NAVSIM_DEVKIT_ROOT is wrong
#
# The active virtual or conda environment is used where there is one. Otherwise .venv in the repository is made; it sees
# the packages of the Python it was made with, so that an already installed NAVSIM, torch or driver build is used.

REPOSITORY_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The torch that is installed where there is none: the version this package is tested with. Set TORCH to choose another,
# for example TORCH="torch==2.9.1", or install torch yourself first.
TORCH="${TORCH:-torch==2.13.0}"

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

# The Python to build .venv from: the first that is new enough.
_base_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.10; do
        if [[ -n $candidate ]] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "navsim-recogdrive needs Python 3.10 or newer; none was found (set PYTHON=/path/to/python3)" >&2
    return 1
}

_resolves_here() {
    (cd / && python - "$REPOSITORY_ROOT" <<'PYTHON'
import importlib.util, pathlib, sys
spec = importlib.util.find_spec("navsim_recogdrive")
sys.exit(spec is None or not pathlib.Path(spec.origin).resolve().is_relative_to(pathlib.Path(sys.argv[1]).resolve()))
PYTHON
    )
}

prepare_environment() {
    local extras="$1" base
    if [[ -z ${VIRTUAL_ENV:-} && -z ${CONDA_PREFIX:-} ]]; then
        if [[ ! -x $REPOSITORY_ROOT/.venv/bin/python ]]; then
            base="$(_base_python)"
            say "Making a virtual environment in .venv"
            "$base" -m venv --system-site-packages "$REPOSITORY_ROOT/.venv"
        fi
        # shellcheck disable=SC1091
        source "$REPOSITORY_ROOT/.venv/bin/activate"
    fi
    python -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "the active environment has $(python --version); navsim-recogdrive needs Python 3.10 or newer" >&2
        return 1
    }
    # Installed once per change of the requirements: a second run starts at once. Another checkout may have been installed
    # into this environment since, so the stamp counts only while the package resolves to this one.
    local stamp want
    stamp="$(python -c 'import sys; print(sys.prefix)')/.navsim-recogdrive"
    want="$REPOSITORY_ROOT $extras $(cksum <"$REPOSITORY_ROOT/setup.py")"
    if [[ ! -f $stamp ]] || ! grep -qxF "$want" "$stamp" || ! _resolves_here; then
        say "Installing navsim-recogdrive[$extras] and its requirements"
        python -c 'import torch' 2>/dev/null || python -m pip install --quiet "$TORCH"
        python -m pip install --quiet --editable "${REPOSITORY_ROOT}[$extras]"
        echo "$want" >>"$stamp" 2>/dev/null || true
    fi
}

# Importable as it is, or from NAVSIM_DEVKIT_ROOT (and NUPLAN_DEVKIT_ROOT where nuPlan is not installed).
find_navsim() {
    local found
    if [[ -n ${NAVSIM_DEVKIT_ROOT:-} ]]; then
        if [[ ! -f $NAVSIM_DEVKIT_ROOT/navsim/agents/abstract_agent.py ]]; then
            echo "NAVSIM_DEVKIT_ROOT=$NAVSIM_DEVKIT_ROOT is not a NAVSIM checkout (no navsim/agents/abstract_agent.py)" >&2
            return 2
        fi
        export PYTHONPATH="$NAVSIM_DEVKIT_ROOT${NUPLAN_DEVKIT_ROOT:+:$NUPLAN_DEVKIT_ROOT}${PYTHONPATH:+:$PYTHONPATH}"
    fi
    found="$(python - <<'PYTHON'
import importlib.util, pathlib
def find(name):
    try:
        return importlib.util.find_spec(name)
    except ImportError:
        return None
if find("navsim") is None:
    print("missing NAVSIM is not installed")
elif find("navsim.agents.abstract_agent") is None:
    print("missing The installed 'navsim' is PyPI's unrelated project, not NAVSIM")
elif find("nuplan") is None:
    print("missing NAVSIM is there but nuplan-devkit is not (install it, or set NUPLAN_DEVKIT_ROOT)")
else:
    root = pathlib.Path(find("navsim.planning.script").origin).parent
    print(2 if (root / "run_pdm_score_one_stage.py").is_file() else 1, root)
PYTHON
)"
    if [[ $found == missing* ]]; then
        NAVSIM_MISSING="${found#missing }"
        return 1
    fi
    NAVSIM_MAJOR="${found%% *}"
    NAVSIM_SCRIPT_ROOT="${found#* }"
    export NAVSIM_MAJOR NAVSIM_SCRIPT_ROOT
}
