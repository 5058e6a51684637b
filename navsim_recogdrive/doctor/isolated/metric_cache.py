"""Step ``metric_cache``: was a metric cache made by the installed NAVSIM, and are its files there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_STATTED = 200  # files that are looked for, spread over the table


def run(parameters: dict[str, Any], results: dict[str, Any], argument: str) -> dict[str, Any]:
    """Read three of the metric caches and look for a few more.

    Returns:
        ``tokens`` (count), ``looked_for`` and ``missing`` (counts).

    Raises:
        UnusableMetricCache: if it was made by another version of NAVSIM, or its files are not there.
    """
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    folder = MetricCacheFolder(Path(parameters["metric_cache"]))
    tokens = folder.tokens
    sample = tokens[:: max(1, len(tokens) // _STATTED)]
    missing = folder.missing_tokens(sample)
    folder.check([token for token in sample if token not in set(missing)], samples=3)
    return {"tokens": len(tokens), "looked_for": len(sample), "missing": len(missing)}
