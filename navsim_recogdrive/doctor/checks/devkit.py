"""NAVSIM and nuplan-devkit: there, the right ones, of which version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok, warning

_DRIVING = ("cache", "train", "rl", "evaluate", "submit")
_INSTALL = (
    "pip install -e '.[navsim]'; pip install --no-deps -r requirements/devkits.txt, both in the checkout of "
    "navsim-recogdrive; or set NAVSIM_DEVKIT_ROOT to a NAVSIM checkout and NUPLAN_DEVKIT_ROOT to one of nuplan-devkit"
)
_SCORES = {1: "v1.x (PDMS, the navtest leaderboard)", 2: "v2.x (EPDMS)"}


def check(context: Context) -> Iterator[Finding]:
    """Find both devkits by their files, then import them in the separate process."""
    request, navsim = context.request, context.navsim
    root = request.environment.get("NAVSIM_DEVKIT_ROOT", "")
    if root and not (Path(root) / "navsim" / "agents" / "abstract_agent.py").is_file():
        yield error(
            "navsim.checkout",
            f"NAVSIM_DEVKIT_ROOT={root} is not a NAVSIM checkout: it has no navsim/agents/abstract_agent.py",
            "set it to the folder that holds navsim/, or unset it where NAVSIM is installed",
        )
    if navsim is None:
        yield request.missing("navsim.version", "NAVSIM is not importable", _INSTALL, *_DRIVING)
        return
    if not navsim.is_the_benchmark:
        yield error(
            "navsim.version",
            f"the navsim in {navsim.folder} is not the driving benchmark: it has no agents/abstract_agent.py; PyPI's "
            "navsim is an unrelated project",
            f"pip uninstall navsim; {_INSTALL}",
        )
        return
    if context.module_folder("nuplan") is None:
        yield request.missing("navsim.nuplan", "nuplan-devkit, which NAVSIM imports, is missing", _INSTALL, *_DRIVING)
        return
    result = context.step("navsim")
    if result is None or result.error:
        yield request.missing(
            "navsim.version",
            f"NAVSIM in {navsim.folder} does not import: {result.error if result else 'it was not tried'}",
            "install what it names: pip install -e '.[navsim]' in the checkout of navsim-recogdrive",
            *_DRIVING,
        )
        return
    major = result.value["major"]
    through = " through NAVSIM_DEVKIT_ROOT, which the scripts put on PYTHONPATH" if root else ""
    yield ok("navsim.version", f"NAVSIM {_SCORES[major]} in {navsim.folder}{through}")
    if major != navsim.major:
        yield warning(
            "navsim.checkout",
            f"the agents of {navsim.folder} are those of v{major}, its runners those of v{navsim.major}",
            "take a whole checkout of the tag v1.1 or v2.2",
        )
    if not (navsim.config / "training").is_dir():
        yield error(
            "navsim.checkout",
            f"NAVSIM in {navsim.folder} has no Hydra configurations: its wheels leave planning/script/config out",
            "pip uninstall navsim; pip install --no-deps -e CHECKOUT_OF_NAVSIM",
        )
    if _is_installed_beside(context, navsim.folder):
        yield warning(
            "navsim.checkout",
            f"navsim is installed too, in another folder than {navsim.folder}, which is imported",
            "pip uninstall navsim, or unset NAVSIM_DEVKIT_ROOT",
        )


def _is_installed_beside(context: Context, used: Path) -> bool:
    """Whether a second copy of NAVSIM is installed: its own files, not those of the one in use."""
    distribution = context.distribution("navsim")
    if distribution is None:
        return False
    file = Path(str(distribution.locate_file("navsim")))
    return file.is_dir() and file.resolve() != used.resolve()
