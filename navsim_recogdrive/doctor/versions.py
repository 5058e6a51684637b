"""Versions and requirements (PEP 440, PEP 508) with the standard library alone: ``packaging`` may be missing."""

from __future__ import annotations

import ast
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_VERSION = re.compile(
    r"v?(?:(\d+)!)?(\d+(?:\.\d+)*)"
    r"(?:[-_.]?(alpha|beta|preview|pre|rc|a|b|c)[-_.]?(\d*))?"
    r"(?:-(\d+)|[-_.]?(post|rev|r)[-_.]?(\d*))?"
    r"(?:[-_.]?(dev)[-_.]?(\d*))?"
    r"(?:\+([a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE,
)
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;@()]*)\)?\s*(?:@[^;]*)?(?:;(.*))?$")
_CLAUSE = re.compile(r"\s*(===|==|!=|<=|>=|~=|<|>)\s*(\S+)\s*$")
_PHASES = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_FIRST, _LAST = (-1, 0), (9, 0)  # before every pre-release, and after


class UnreadableVersion(ValueError):
    """Text that is no version, requirement or marker."""


@dataclass(frozen=True, order=True)
class Version:
    """A version, ordered as PEP 440 says.

    Attributes:
        epoch: almost always 0.
        release: numbers, zeros at the end left out.
        pre: phase and number of a pre-release.
        post: number of a post-release, -1 for none.
        dev: not one, or the number of a development release.
        local: what stands behind ``+``, as torch's ``cpu`` or ``cu128``.
    """

    epoch: int
    release: tuple[int, ...]
    pre: tuple[int, int]
    post: int
    dev: tuple[int, int]
    local: str = ""

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read a version.

        Raises:
            UnreadableVersion: if it is none.
        """
        found = _VERSION.fullmatch(text.strip())
        if not found:
            raise UnreadableVersion(f"{text!r} is not a version")
        epoch, release, phase, pre, implicit, post_word, post, dev_word, dev, local = found.groups()
        numbers = [int(number) for number in release.split(".")]
        while len(numbers) > 1 and numbers[-1] == 0:
            numbers.pop()
        if phase:
            before = (_PHASES[phase.lower()], int(pre or 0))
        else:
            before = _FIRST if dev_word and not (post_word or implicit) else _LAST
        after = int(implicit or post or 0) if implicit or post_word else -1
        development = (0, int(dev or 0)) if dev_word else _LAST
        return cls(int(epoch or 0), tuple(numbers), before, after, development, (local or "").lower())

    @property
    def public(self) -> Version:
        """Without the local part, which no range looks at."""
        return Version(self.epoch, self.release, self.pre, self.post, self.dev)

    @property
    def base(self) -> tuple[int, tuple[int, ...]]:
        """Epoch and release."""
        return self.epoch, self.release

    @property
    def is_prerelease(self) -> bool:
        """Whether it comes before its release."""
        return self.pre != _LAST or self.dev != _LAST

    def starts_with(self, numbers: tuple[int, ...]) -> bool:
        """Whether the release begins with ``numbers``."""
        padded = self.release + (0,) * len(numbers)
        return padded[: len(numbers)] == numbers


def satisfies(version: str, specifier: str) -> bool:
    """Whether a version is in a range such as ``<3,>=1.26.4``; pre-releases are looked at like any other.

    Raises:
        UnreadableVersion: if either cannot be read.
    """
    return all(_clause(version, clause) for clause in specifier.split(",") if clause.strip())


def _clause(text: str, clause: str) -> bool:
    found = _CLAUSE.match(clause)
    if not found:
        raise UnreadableVersion(f"{clause!r} is not a range of versions")
    operator, wanted = found.groups()
    if operator == "===":
        return text.strip().lower() == wanted.lower()
    version = Version.parse(text)
    if wanted.endswith(".*"):
        limit = Version.parse(wanted[:-2])
        inside = version.epoch == limit.epoch and version.starts_with(_numbers(wanted[:-2]))
        return inside == (operator == "==")
    limit, public = Version.parse(wanted), version.public
    if operator in ("==", "!="):
        return ((version if limit.local else public) == limit) == (operator == "==")
    if operator == "~=":
        return public >= limit and version.epoch == limit.epoch and version.starts_with(_numbers(wanted)[:-1])
    if operator == "<":
        return public < limit and (limit.is_prerelease or not (public.is_prerelease and public.base == limit.base))
    if operator == ">":
        of_limit = (public.base, public.pre) == (limit.base, limit.pre)
        return public > limit and (limit.post >= 0 or not (public.post >= 0 and of_limit))
    return public <= limit if operator == "<=" else public >= limit


def _numbers(text: str) -> tuple[int, ...]:
    """A release as it is written, with its zeros."""
    found = _VERSION.match(text.strip())
    return tuple(int(number) for number in found[2].split(".")) if found else ()


@dataclass(frozen=True)
class Requirement:
    """What a package's metadata asks for.

    Attributes:
        name: as it is written.
        specifier: range of versions, empty for any.
        marker: condition, empty for always.
    """

    name: str
    specifier: str
    marker: str

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a line of ``Requires-Dist``.

        Raises:
            UnreadableVersion: if it is none.
        """
        found = _REQUIREMENT.match(text)
        if not found:
            raise UnreadableVersion(f"{text!r} is not a requirement")
        name, specifier, marker = found.groups()
        return cls(name, specifier.strip(), (marker or "").strip())

    def applies(self, extra: str = "") -> bool:
        """Whether the condition holds in this Python, for an extra or without one.

        Raises:
            UnreadableVersion: if the condition cannot be read.
        """
        return not self.marker or _holds(self.marker, extra)


def same_name(name: str) -> str:
    """A package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def marker_environment() -> dict[str, str]:
    """What markers may ask of this Python."""
    return {
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "python_full_version": platform.python_version(),
        "os_name": os.name,
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "platform_release": platform.release(),
        "platform_version": platform.version(),
        "platform_python_implementation": platform.python_implementation(),
        "implementation_name": sys.implementation.name,
    }


_TEXT: dict[type, Callable[[str, str], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_ORDER: dict[type, str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


def _holds(marker: str, extra: str) -> bool:
    """Markers are written like Python's comparisons, so Python's parser reads them; nothing is executed."""
    values = {**marker_environment(), "extra": extra}
    try:
        return _evaluate(ast.parse(marker.strip(), mode="eval").body, values)
    except (SyntaxError, KeyError, AttributeError, TypeError) as error:
        raise UnreadableVersion(f"{marker!r} is not a marker ({error})") from error


def _evaluate(node: Any, values: dict[str, str]) -> bool:
    if isinstance(node, ast.BoolOp):
        parts = [_evaluate(value, values) for value in node.values]
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    (operator,), (right,) = node.ops, node.comparators
    left_text, right_text = (
        values[side.id] if isinstance(side, ast.Name) else side.value for side in (node.left, right)
    )
    is_version = any(isinstance(side, ast.Name) and side.id.startswith("python_") for side in (node.left, right))
    if is_version and type(operator) in _ORDER:
        if isinstance(node.left, ast.Name):
            return _clause(left_text, _ORDER[type(operator)] + right_text)
        turned = {ast.Lt: ">", ast.LtE: ">=", ast.Gt: "<", ast.GtE: "<="}
        return _clause(right_text, turned.get(type(operator), _ORDER[type(operator)]) + left_text)
    if any(isinstance(side, ast.Name) and side.id == "extra" for side in (node.left, right)):
        left_text, right_text = same_name(left_text), same_name(right_text)
    return _TEXT[type(operator)](left_text, right_text)
