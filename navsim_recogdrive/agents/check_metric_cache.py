"""Says before a split is scored which of its scenes lack a metric cache.

    python -m navsim_recogdrive.agents.check_metric_cache FOLDER --split navhard_two_stage [HYDRA OVERRIDES]

NAVSIM v2.x passes over such scenes, plans all others, and then, in two stages, writes no scores at all.
The exit status is 0 if every scene has one, 1 if not, 2 if the scenes or the folder cannot be told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache, describe_missing
from navsim_recogdrive.agents.submission_tokens import ExpectedTokens, NoSuchTokens, tokens_of_split

_DECIDE_SCENES = ("train_test_split", "navsim_log_path", "synthetic_scenes_path", "hydra")
_SCRIPT = "scripts/cache_dataset/run_metric_caching.sh"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is missing; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.check_metric_cache",
        description="Say which scenes of a split lack a metric cache, before they are planned and scored.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of NAVSIM's run_metric_caching.py")
    parser.add_argument("--split", required=True, help="train_test_split that is going to be scored")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="Hydra overrides that the runner is given")
    options = parser.parse_intermixed_args(arguments)
    # The others are of the scoring runner, and need not exist where the scenes are looked up.
    names = [one.partition("=")[0].lstrip("+~").split(".")[0].split("/")[0] for one in options.overrides]
    overrides = [one for one, name in zip(options.overrides, names, strict=True) if name in _DECIDE_SCENES]
    try:
        folder = MetricCacheFolder(options.folder)
        expected = tokens_of_split(options.split, overrides)
        tokens, missing = _missing(folder, expected)
        if missing and expected.listed:
            # Scenes whose data are not here are not planned either. To look costs minutes, so only now.
            tokens, missing = _missing(folder, tokens_of_split(options.split, overrides, of_the_data=True))
    except (NoSuchTokens, UnusableMetricCache, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, UnusableMetricCache):
            print(
                f"For this split: SPLIT={options.split} METRIC_CACHE_PATH={options.folder} {_SCRIPT}", file=sys.stderr
            )
        return 2
    if missing:
        print(
            f"error: {describe_missing(missing, len(tokens), options.folder)}. Run metric caching of {options.split} "
            "again: it keeps what is there. What cannot be cached must be left out of the split",
            file=sys.stderr,
        )
        return 1
    return 0


def _missing(folder: MetricCacheFolder, expected: ExpectedTokens) -> tuple[list[str], list[str]]:
    """Tokens of all stages, and those of them without a metric cache where NAVSIM will look for it."""
    tokens = sorted(expected.first | (expected.second or frozenset()))
    return tokens, folder.missing_tokens(tokens, as_navsim=True)


if __name__ == "__main__":
    sys.exit(main())
