"""Python, and this package's own installation."""

from __future__ import annotations

import ast
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import OWN_FOLDER, PACKAGE, Context
from navsim_recogdrive.doctor.findings import Finding, error, ok, warning
from navsim_recogdrive.doctor.versions import satisfies

_INSTALL = "pip install -e '.[navsim]' in the checkout of navsim-recogdrive"


def check(context: Context) -> Iterator[Finding]:
    """Version of Python; is this package installed, once, and as the code that runs."""
    distribution = context.distribution(PACKAGE)
    wanted = (distribution.metadata["Requires-Python"] if distribution else None) or ">=3.10"
    found = platform.python_version()
    if satisfies(found, wanted):
        yield ok("python.version", f"Python {found} ({sys.executable}) is in {wanted}")
    else:
        yield error(
            "python.version",
            f"Python {found} ({sys.executable}) is not in {wanted}",
            "make an environment with a newer Python, for example python3.11 -m venv recogdrive",
        )
    if distribution is None:
        yield warning(
            "python.installation",
            f"{PACKAGE} runs from {OWN_FOLDER}, but is not installed: its requirements are not known, and Hydra finds "
            "agent=recogdrive_2b only while that folder is on the path",
            _INSTALL,
        )
        return
    installed, running = context.version(PACKAGE), _running_version(OWN_FOLDER / "__init__.py")
    folder = context.module_folder("navsim_recogdrive")
    if installed != running:
        yield warning(
            "python.installation",
            f"the code in {OWN_FOLDER} is version {running}, installed is the metadata of {installed}",
            _INSTALL,
        )
    elif folder is not None and folder.resolve() != OWN_FOLDER.resolve():
        yield warning(
            "python.installation",
            f"two copies: this one runs from {OWN_FOLDER}, a runner would import {folder}",
            "pip uninstall the one that is not wanted, or take it from PYTHONPATH",
        )
    else:
        yield ok("python.installation", f"{PACKAGE} {installed} in {OWN_FOLDER}")


def _running_version(file: Path) -> str:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    return ""
