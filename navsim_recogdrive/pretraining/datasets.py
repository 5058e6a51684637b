"""Looks after mixtures of question-answer data sets.

    python -m navsim_recogdrive.pretraining.datasets template recogdrive --data-root DATA > mixture.json
    python -m navsim_recogdrive.pretraining.datasets check mixture.json
    python -m navsim_recogdrive.pretraining.datasets stats mixture.json --tokenizer VLM

``template`` prints a built-in mixture to start from; ``check`` says what is wrong with the data before a training run
finds out; ``stats`` says what is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from navsim_recogdrive.pretraining.registry import (
    Entry,
    InvalidMixture,
    builtin_mixtures,
    load_mixture,
    mixture_content,
    write_mixture,
)
from navsim_recogdrive.pretraining.scan import (
    Problem,
    Reading,
    licence_is_known,
    problem_line,
    scan,
    statistics,
)
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError


def check(options: argparse.Namespace) -> int:
    """Say what is wrong with each data set; returns 1 if anything is."""
    entries, found_problems, lengths = _chosen(options), False, {}
    with ExitStack() as stack:
        report = stack.enter_context(options.report.open("w", encoding="utf-8")) if options.report else None
        for name, entry in entries.items():
            shown: list[Problem] = []

            def note(problem: Problem, name: str = name, shown: list[Problem] = shown) -> None:
                if len(shown) < options.show:
                    shown.append(problem)
                if report is not None:
                    report.write(problem_line(name, problem) + "\n")

            contents = scan(name, entry, Reading(decode_images=not options.skip_images), options.workers, note)
            lengths[name] = contents.samples
            problems = sum(contents.problems.values())
            found_problems |= problems > 0
            licence = entry.licence if licence_is_known(entry) else "UNKNOWN, ask its authors before you use it"
            print(f"{name}: {contents.samples} samples, {problems} problems; licence: {licence}")
            for kind, count in contents.problems.most_common():
                print(f"  {count} {kind}")
            for problem in shown:
                where = f"line {problem.line}: " if problem.line else ""
                print(f"    {where}{problem.kind}: {problem.detail}")
            if problems > len(shown):
                print(f"    ... and {problems - len(shown)} more" + ("" if report else " (--report FILE lists all)"))
    if options.write_lengths:
        counted = {name: replace(entry, length=lengths[name]) for name, entry in entries.items()}
        write_mixture(options.write_lengths, counted)
        print(f"written with these lengths: {options.write_lengths}")
    return int(found_problems)


def stats(options: argparse.Namespace) -> int:
    """Say what is in each data set; returns 0."""
    gathered = {
        name: statistics(scan(name, entry, Reading(False, options.tokenizer), options.workers))
        for name, entry in _chosen(options).items()
    }
    if options.json:
        print(json.dumps(gathered, indent=2))
        return 0
    for name, numbers in gathered.items():
        print(
            f"{name}: "
            + "; ".join(f"{key} {_plain(value)}" for key, value in numbers.items() if value not in (None, {}))
        )
    return 0


def template(options: argparse.Namespace) -> int:
    """Print a built-in mixture; returns 0."""
    entries = load_mixture(options.mixture, options.data_root)
    print(json.dumps(mixture_content(entries), indent=2, ensure_ascii=False))
    return 0


def _plain(value: Any) -> str:
    return ", ".join(f"{key}: {one}" for key, one in value.items()) if isinstance(value, dict) else str(value)


def _chosen(options: argparse.Namespace) -> dict[str, Entry]:
    entries = load_mixture(options.mixture, options.data_root)
    if unknown := sorted(set(options.only or ()) - entries.keys()):
        raise InvalidMixture(f"the mixture has no data set {unknown[0]!r}; it has {sorted(entries)}")
    return {name: entry for name, entry in entries.items() if not options.only or name in options.only}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.pretraining.datasets", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="check | stats | template")
    workers = min(8, os.cpu_count() or 1)
    for name, command, about in (
        ("check", check, "say what is wrong with the data sets of a mixture; exit status 1 if anything is"),
        ("stats", stats, "say what is in them; their images are not opened"),
        ("template", template, f"print a built-in mixture ({', '.join(builtin_mixtures())}) to start from"),
    ):
        one = commands.add_parser(name, help=about, description=about)
        one.set_defaults(command=command)
        one.add_argument("mixture", help="JSON file in InternVL's layout, or the name of a built-in mixture")
        one.add_argument(
            "--data-root",
            type=Path,
            required=command is template,
            help="what relative paths count from [the mixture's folder]",
        )
        if command is template:
            continue
        one.add_argument("--only", action="append", metavar="NAME", help="only this data set; may be repeated")
        one.add_argument("--workers", type=int, default=workers, help=f"processes [{workers}]")
        if command is stats:
            one.add_argument("--tokenizer", metavar="FOLDER", help="of a VLM: count tokens of the text too")
            one.add_argument("--json", action="store_true")
        else:
            one.add_argument("--skip-images", action="store_true", help="do not open images")
            one.add_argument("--show", type=int, default=20, help="problems of each data set to show [20]")
            one.add_argument(
                "--report", type=Path, metavar="FILE", help="write all problems there, a line of JSON each"
            )
            one.add_argument(
                "--write-lengths",
                type=Path,
                metavar="FILE",
                help="write the mixture with the lengths that were counted",
            )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for problems found, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (InvalidMixture, VLMCheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
