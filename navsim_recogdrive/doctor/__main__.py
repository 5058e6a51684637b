"""``python -m navsim_recogdrive.doctor``: what is wrong with an installation, its data and its machine, and the fix.

Exit status: 0 if there is no error (warnings or not), 1 if there is one, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from navsim_recogdrive import __version__
from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import as_json, as_text, exit_status
from navsim_recogdrive.doctor.registry import diagnose
from navsim_recogdrive.doctor.request import CHALLENGE_SPLIT, OVERRIDABLE, STAGES, Request


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for override in options.overrides:
        if not re.sub(r"^(\+\+|\+|~)", "", override).startswith(OVERRIDABLE):
            parser.error(f"override {override!r}: the doctor takes {', '.join(f'{one}*' for one in OVERRIDABLE)}")
    environment = dict(os.environ)
    given = Request(overrides=tuple(options.overrides))
    request = replace(
        given,
        stage=options.stage,
        agent=options.agent,
        vlm=options.vlm or given.override("agent.vlm.path") or environment.get("VLM_PATH") or None,
        checkpoint=_path(options.checkpoint or environment.get("CHECKPOINT")),
        cache=_path(options.cache or given.override("agent.hidden_state_cache") or environment.get("CACHE_PATH")),
        metric_cache=_path(options.metric_cache or environment.get("METRIC_CACHE_PATH")),
        split=options.split,
        environment=environment,
        time_limit_s=options.time_limit,
    )
    context = Context(request)
    findings = diagnose(context)
    if options.json:
        print(as_json(findings, {**request.to_dict(), "split": context.split}, __version__))
    else:
        width = shutil.get_terminal_size((120, 24)).columns
        sys.stdout.write(as_text(findings, width, sys.stdout.isatty() and "NO_COLOR" not in environment))
    return exit_status(findings)


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, found {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.doctor",
        description="Check the installation, the data and the machine, and say how to repair what is wrong.",
        epilog="Exit status: 0 without errors, 1 with errors, 2 for wrong usage.",
    )
    parser.add_argument("--stage", choices=STAGES, help="only what this stage needs, and what it lacks as errors")
    parser.add_argument("--agent", default="recogdrive_2b", help="name of the agent's config (default: %(default)s)")
    parser.add_argument("--vlm", metavar="FOLDER", help="the VLM (default: $VLM_PATH)")
    parser.add_argument("--checkpoint", metavar="FILE", help="planner weights (default: $CHECKPOINT)")
    parser.add_argument("--cache", metavar="FOLDER", help="cached hidden states or tiles (default: $CACHE_PATH)")
    parser.add_argument("--metric-cache", metavar="FOLDER", help="metric cache (default: $METRIC_CACHE_PATH)")
    parser.add_argument(
        "--split",
        help="train_test_split (default: navtrain; for evaluate navtest; for submit the leaderboard's, navtest with "
        f"NAVSIM v1.1, {CHALLENGE_SPLIT} with v2.x)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--time-limit", type=_positive, default=120.0, metavar="SECONDS", help="for one import (default: %(default)g)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="the runner's, such as agent.vlm.training=lora"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
