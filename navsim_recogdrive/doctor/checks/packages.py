"""Installed versions against the ranges in this package's own metadata, and against each other's."""

from __future__ import annotations

from collections.abc import Iterator

from navsim_recogdrive.doctor.context import PACKAGE, Context
from navsim_recogdrive.doctor.findings import Finding, error, ok, warning
from navsim_recogdrive.doctor.versions import Requirement, UnreadableVersion, same_name, satisfies

_CHECK = "packages.versions"

_STANDS_IN = {
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "pytorch-lightning": (),
}
"""Distributions that bring the same module."""

_TOGETHER = ("torchvision", "flash-attn", "lightning", "accelerate", "peft", "datasets")
"""Packages beside our requirements whose own requirements matter."""


def check(context: Context) -> Iterator[Finding]:
    """Every requirement of the extras that the stage uses."""
    distribution = context.distribution(PACKAGE)
    if distribution is None:
        return
    wanted = {}
    for extra in ("", *_extras(context)):
        for requirement in _applying(distribution.requires or [], extra):
            wanted[same_name(requirement.name), requirement.specifier] = (requirement, extra)
    problems = 0
    for requirement, extra in wanted.values():
        problem = _compare(context, requirement, extra)
        if problem is not None:
            problems += 1
            yield problem
    names = {name for name, _ in wanted}
    for problem in _between(context, names | set(_TOGETHER)):
        problems += 1
        yield problem
    if not problems:
        extras = ", ".join(_extras(context)) or "none"
        yield ok(_CHECK, f"{len(names)} packages are in the ranges of {PACKAGE} (extras: {extras}) and of each other")


def _extras(context: Context) -> list[str]:
    extras = ["pretraining"] if context.request.stage == "pretraining" else ["navsim"]
    if context.vlm_settings.get("training") == "lora":
        extras.append("lora")
    return extras


def _applying(lines: list[str], extra: str) -> Iterator[Requirement]:
    """Requirements that hold in this Python; with an extra, its own only."""
    for line in lines:
        try:
            requirement = Requirement.parse(line)
            if requirement.applies(extra) and not (extra and requirement.applies("")):
                yield requirement
        except UnreadableVersion:
            continue


def _compare(context: Context, requirement: Requirement, extra: str) -> Finding | None:
    name, specifier = requirement.name, requirement.specifier
    found = context.version(name)
    others = [other for other in _STANDS_IN.get(same_name(name), ()) if context.version(other)]
    if found is None and others:
        name, found = others[0], context.version(others[0])
    if found is None:
        package = f"{PACKAGE}[{extra}]" if extra else PACKAGE
        return error(
            _CHECK, f"{name} is missing; {package} needs {name}{specifier}", f"pip install '{name}{specifier}'"
        )
    try:
        if satisfies(found, specifier):
            return None
    except UnreadableVersion:
        return error(
            _CHECK,
            f"the metadata of {name} is broken: its version is {found!r}",
            f"pip install --force-reinstall '{name}{specifier}'",
        )
    return error(
        _CHECK, f"{name} {found} is installed, {PACKAGE} needs {specifier}", f"pip install '{name}{specifier}'"
    )


def _between(context: Context, names: set[str]) -> Iterator[Finding]:
    """What the packages ask of each other, as ``pip check`` would say it."""
    for name in sorted(names):
        distribution = context.distribution(name)
        if distribution is None or name in ("nuplan-devkit", "navsim"):  # their pins are for Python 3.9
            continue
        for requirement in _applying(distribution.requires or [], ""):
            other = same_name(requirement.name)
            found = context.version(other)
            if not found or other not in names:
                continue
            try:
                if satisfies(found, requirement.specifier):
                    continue
            except UnreadableVersion:
                continue
            yield warning(
                _CHECK,
                f"{name} {context.version(name)} wants {other}{requirement.specifier}, {found} is installed",
                f"pip install '{other}{requirement.specifier}', or another version of {name}",
            )
