"""Packages that do not go together, known from their failures."""

from __future__ import annotations

from collections.abc import Iterator

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok, warning
from navsim_recogdrive.doctor.versions import UnreadableVersion, Version, satisfies

_CHECK = "packages.pairs"

_BUILT_FOR_NUMPY_2 = {"pandas": ">=2.2.2", "pyarrow": ">=16", "opencv-python": ">=4.10", "shapely": ">=2.0.4"}
"""First versions whose compiled parts load beside numpy 2."""

_OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
"""All of them install the folder ``cv2``."""


def check(context: Context) -> Iterator[Finding]:
    """Look at the versions of what is installed; nothing is imported."""
    found = [*_numpy(context), *_torchvision(context), *_opencv(context), *_lightning(context)]
    yield from found
    if not found:
        yield ok(_CHECK, "no known bad combination of packages")


def _numpy(context: Context) -> Iterator[Finding]:
    numpy = context.version("numpy")
    if _in(numpy, "<1.26.4"):
        yield warning(
            _CHECK,
            f"numpy {numpy} cannot read metric caches that numpy 2 wrote (numpy._core is missing)",
            "pip install 'numpy>=1.26.4'",
        )
    if not _in(numpy, ">=2"):
        return
    for name, needed in _BUILT_FOR_NUMPY_2.items():
        version = context.version(name)
        if version and not _in(version, needed):
            yield error(
                _CHECK,
                f"{name} {version} was built for numpy 1, and numpy {numpy} is installed; {name}{needed} is for both",
                f"pip install '{name}{needed}'",
            )


def _torchvision(context: Context) -> Iterator[Finding]:
    torch, torchvision = context.version("torch"), context.version("torchvision")
    if not torch or not torchvision:
        return
    builds = [_local(torch), _local(torchvision)]
    if all(builds) and builds[0] != builds[1]:
        yield error(
            _CHECK,
            f"torchvision {torchvision} is built for another torch than {torch}: {builds[1]} and {builds[0]}",
            "pip uninstall torchvision (this package does not need it), or install both from one index",
        )


def _opencv(context: Context) -> Iterator[Finding]:
    there = [name for name in _OPENCV if context.version(name) is not None]
    if len(there) > 1:
        versions = ", ".join(f"{name} {context.version(name)}" for name in there)
        yield warning(
            _CHECK,
            f"{len(there)} packages share the folder cv2 ({versions}): which files are there depends on their order",
            f"pip uninstall -y {' '.join(there)}; pip install opencv-python-headless (or opencv-python, for windows)",
        )


def _lightning(context: Context) -> Iterator[Finding]:
    both = context.version("lightning"), context.version("pytorch-lightning")
    if all(both) and both[0] != both[1]:
        yield warning(
            _CHECK,
            f"lightning {both[0]} and pytorch-lightning {both[1]} differ; NAVSIM and this package use "
            "pytorch_lightning, whose trainer refuses the callbacks and loggers of the other",
            f"pip install 'lightning=={both[1]}', or pip uninstall lightning",
        )


def _in(version: str | None, specifier: str) -> bool:
    try:
        return bool(version) and satisfies(str(version), specifier)
    except UnreadableVersion:
        return False


def _local(version: str) -> str:
    try:
        return Version.parse(version).local
    except UnreadableVersion:
        return ""
