"""What all groups of settings share: their error, checks of single values, and how they are made of a mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


class InvalidSetting(ValueError):
    """A setting with an unknown name or a value that cannot work."""


def require_positive(name: str, value: object, above: float = 0.0) -> None:
    """Refuse what is not a finite number above ``above``."""
    if not isinstance(value, float | int) or isinstance(value, bool) or not above < value < math.inf:
        raise InvalidSetting(f"{name} must be a number above {above:g}, or null, found {value!r}")


def require_int(name: str, value: object, minimum: int) -> None:
    """Refuse what is not a whole number of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InvalidSetting(f"{name} must be a whole number of at least {minimum}, found {value!r}")


def build_settings(kind: type[T], settings: Mapping[str, Any], name: str) -> T:
    """``kind(**settings)`` for a dataclass, with an error that names an unknown setting and those that exist.

    Raises:
        InvalidSetting: for unknown names.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidSetting(f"unknown setting(s) {', '.join(unknown)} in '{name}'; it has: {', '.join(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
