"""A metric cache: made by the NAVSIM that is installed, and all there."""

from __future__ import annotations

from collections.abc import Iterator

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok

_CHECK = "cache.metrics"
_MAKE = "scripts/cache_dataset/run_metric_caching_train.sh (rl) or run_metric_caching.sh (evaluate) makes one"


def check(context: Context) -> Iterator[Finding]:
    """Read three of its files."""
    request = context.request
    if request.metric_cache is None:
        yield request.missing(
            _CHECK,
            "no metric cache is named",
            f"export METRIC_CACHE_PATH=FOLDER, or --metric-cache FOLDER; {_MAKE}",
            "rl",
            "evaluate",
        )
        return
    result = context.step("metric_cache")
    if result is None:
        yield request.missing(
            _CHECK, "the metric cache cannot be read without NAVSIM", "see navsim.version", "rl", "evaluate"
        )
    elif result.error:
        yield error(_CHECK, f"the metric cache cannot be used: {result.error}", _MAKE)
    elif result.value["missing"]:
        found = result.value
        yield error(
            _CHECK,
            f"{found['missing']} of {found['looked_for']} files looked for are missing or empty in "
            f"{request.metric_cache}, whose table names {found['tokens']} scenes",
            _MAKE,
        )
    else:
        yield ok(_CHECK, f"{request.metric_cache}: {result.value['tokens']} scenes, made by this version of NAVSIM")
