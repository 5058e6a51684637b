"""``python -m navsim_recogdrive.pretraining.labelling run|export|check|show|templates|placeholders``."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from navsim_recogdrive.cache.writing import write_whole
from navsim_recogdrive.pretraining.labelling import options as settings_of
from navsim_recogdrive.pretraining.labelling.answer_log import AnswerLog
from navsim_recogdrive.pretraining.labelling.asked_scenes import asked_scenes
from navsim_recogdrive.pretraining.labelling.endpoint import LabellingError
from navsim_recogdrive.pretraining.labelling.export import write_samples
from navsim_recogdrive.pretraining.labelling.labeller import Labeller
from navsim_recogdrive.pretraining.labelling.pipeline import (
    Run,
    answered,
    check_servers,
    jobs,
    label_scenes,
)
from navsim_recogdrive.pretraining.labelling.report import Price, Tally, usage_text
from navsim_recogdrive.pretraining.labelling.templates import TemplateError, copy_built_in
from navsim_recogdrive.pretraining.labelling.wording import PLACEHOLDERS
from navsim_recogdrive.pretraining.registry import navsim_entry, write_mixture

_SHOWN_SCENES = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 stopped, 2 wrong settings, 130 interrupted."""
    options = settings_of.parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if options.command == "templates":
            return _copy_templates(options.folder)
        if options.command == "placeholders":
            return _list_placeholders()
        labeller = settings_of.labeller(options)
        commands = {"run": run, "export": export, "show": show, "check": check}
        return commands[options.command](options, labeller)
    except (LabellingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, TemplateError) else 1
    except BrokenProcessPool:
        print("error: a process was killed (out of memory?); run this again with fewer --workers", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install -e '.[labels]' in the checkout of navsim-recogdrive", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130


def run(options: argparse.Namespace, labeller: Labeller) -> int:
    """Ask what has no answer yet, then export."""
    root = _data_root(options)
    servers, prices = settings_of.servers(options), settings_of.prices(options)
    scenes = _count_scenes(options)
    questions = None if scenes is None else scenes * len(labeller.templates.families)
    done, begun = Run(), time.monotonic()
    asked = asked_scenes(options.scenes, labeller, options.limit_scenes, options.workers)
    with AnswerLog(_log_path(options.output), writing=True) as log, closing(asked):
        if log.torn:
            print(f"{log.path}: a torn last line of {log.torn} bytes was removed", file=sys.stderr)
        try:
            with (
                tqdm(total=questions, unit="question", desc="Labelling", mininterval=1.0) as bar,
                logging_redirect_tqdm(),
            ):
                asyncio.run(
                    label_scenes(
                        labeller,
                        asked,
                        servers,
                        log,
                        root,
                        options.concurrency,
                        done,
                        lambda now: _show_progress(bar, now, prices),
                    )
                )
        finally:
            if done.usage or done.found:
                _print_usage(done, log, prices, time.monotonic() - begun)
    return export(options, labeller)


def export(options: argparse.Namespace, labeller: Labeller) -> int:
    """Write the samples that passed, their entry for a mixture, and the statistics."""
    settings, output, root = labeller.settings, options.output, _data_root(options)
    tally = Tally()
    asked = asked_scenes(options.scenes, labeller, options.limit_scenes, options.workers)
    with AnswerLog(_log_path(output), writing=False) as log, closing(asked):
        total = _count_scenes(options)
        scenes = iter(tqdm(asked, total=total, unit="scene", desc="Exporting", mininterval=1.0))
        count = write_samples(output, answered(labeller, scenes, log, tally))
    summary = {"samples": count, "threshold": settings.threshold, **tally.to_dict()}
    write_whole(output.with_name(output.name + ".summary.json"), (json.dumps(summary, indent=1) + "\n").encode())
    note = f"answers of {settings.model}, judged by {settings.judge_model}, score {settings.threshold:g} or more"
    entry = navsim_entry("navsim_recogdrive", root, output, count, note=note)
    write_mixture(output.with_suffix(".mixture.json"), {output.stem: entry})
    print(tally.text())
    print(f"{count} samples in {output}")
    if tally.unanswered:
        print(f"{tally.unanswered} questions have no answer: `run` with the same options asks them again")
    return 0


def check(options: argparse.Namespace, labeller: Labeller) -> int:
    """Try the servers."""
    servers, settings = settings_of.servers(options), labeller.settings
    asyncio.run(check_servers(servers, settings))
    asked = {(servers.main.address, settings.model), (servers.judge.address, settings.judge_model)}
    for address, model in sorted(asked):
        print(f"{address} answers as {model}")
    return 0


def show(options: argparse.Namespace, labeller: Labeller) -> int:
    """Print the first request of each question about the first scenes."""
    scenes = asked_scenes(options.scenes, labeller, options.limit_scenes or _SHOWN_SCENES)
    for scene, filled in jobs(labeller, scenes, Tally()):
        request = labeller.generation(scene, filled)
        print(f"=== {request.scene} {request.family}, image {request.image}\n[system]\n{request.system}")
        print(f"[user]\n{request.user}\n")
    return 0


def _copy_templates(folder: Path) -> int:
    made = copy_built_in(folder)
    print(f"{len(made)} files in {folder}; use them with --templates {folder}")
    return 0


def _list_placeholders() -> int:
    width = max(map(len, PLACEHOLDERS))
    for name, meaning in PLACEHOLDERS.items():
        print(f"{name:{width}}  {meaning}")
    return 0


def _log_path(output: Path) -> Path:
    return output.with_name(output.name + ".answers.jsonl")


def _data_root(options: argparse.Namespace) -> Path:
    if options.data_root is None:
        raise ValueError("no folder of images: give --data-root or OPENSCENE_DATA_ROOT")
    return Path(options.data_root)


def _count_scenes(options: argparse.Namespace) -> int | None:
    """How many there are; ``None`` if they cannot be counted."""
    try:
        with options.scenes.open("rb") as file:
            scenes = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return None  # reading them says why
    limit = options.limit_scenes
    return scenes if limit is None else min(scenes, limit)


def _show_progress(bar: tqdm[None], done: Run, prices: dict[str, Price]) -> None:
    families = done.tally.families.values()
    bar.n = sum(family.verdicts.total() + family.not_applicable for family in families)
    cost = sum(prices.get(model, Price()).of(usage) for model, usage in done.usage.items())
    bar.set_postfix(
        passed=sum(family.verdicts["passed"] for family in families),
        **({"cost": f"{cost:.2f}"} if cost else {}),
        refresh=False,
    )
    bar.update(0)


def _print_usage(done: Run, log: AnswerLog, prices: dict[str, Price], seconds: float) -> None:
    print(f"this run, {seconds:.0f} s ({done.found} requests were answered before):")
    for line in [*(usage_text(done.usage, prices, seconds) or ["nothing had to be asked"]), *done.tally.troubles()]:
        print(f"  {line}")
    print(f"all runs ({log.path}):")
    for line in usage_text(log.usage, prices):
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
