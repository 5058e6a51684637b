"""Step ``navsim``: do NAVSIM and nuPlan import as this package imports them, and which version is it."""

from __future__ import annotations

from typing import Any


def run(parameters: dict[str, Any], results: dict[str, Any], argument: str) -> dict[str, Any]:
    """Import both devkits.

    Returns:
        ``major`` version, 1 or 2.
    """
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    return {"major": NAVSIM_MAJOR}
