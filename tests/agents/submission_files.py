"""What tests of the submission checker share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

TIMES = np.arange(1, 9) * 0.5
CREDIT = {"team_name": "T", "authors": "A, B", "email": "a@b.c", "institution": "I", "country / region": "CH"}
TOKENS = [f"{index:016x}" for index in range(6)]
SYNTHETIC = [f"{index:017x}" for index in range(3)]


def arc(speed: float = 8.0, yaw_rate: float = 0.1) -> np.ndarray[Any, Any]:
    """Poses [8, 3] of a steady turn."""
    heading = yaw_rate * TIMES
    radius = speed / yaw_rate
    return np.stack([radius * np.sin(heading), radius * (1 - np.cos(heading)), heading], axis=1).astype(np.float32)


def findings(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding["level"], finding["code"]) for finding in report["findings"]]


Check = Callable[..., dict[str, Any]]


Check = Callable[..., dict[str, Any]]
"""What the fixture ``check_submission`` is."""
