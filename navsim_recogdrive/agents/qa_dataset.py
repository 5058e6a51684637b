"""Writes training data of stage 1 from NAVSIM's logs.

    python -m navsim_recogdrive.agents.qa_dataset --output navsim_traj.jsonl train_test_split=navtrain [OVERRIDES]

``--kind trajectory`` (the default) writes one trajectory question for each scene in InternVL's format, with the prompt
and the answer of the text planner, and the entry that a mixture needs. ``--kind records`` writes what is known of each
scene, for the auto-labelling of ``navsim_recogdrive.pretraining.labelling``. Logs are read in parallel; the same logs
give the same file whatever the number of processes. Run it again to continue after an interruption.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from tqdm import tqdm

from navsim_recogdrive.agents.qa_lanes import NoMap, map_root
from navsim_recogdrive.agents.qa_scenes import PARTS, SkippedScene, Split, UnusableSplit, log_records, open_split
from navsim_recogdrive.cache.writing import write_whole
from navsim_recogdrive.observation import CAMERA_SETS, DRIVING_COMMANDS
from navsim_recogdrive.pretraining.locking import InUse, only_one
from navsim_recogdrive.pretraining.part_files import OtherSettings, PartFiles
from navsim_recogdrive.pretraining.registry import Entry, navsim_entry, write_mixture
from navsim_recogdrive.pretraining.trajectory_qa import NoSample, trajectory_sample
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.identity import VLMSettings
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile, builtin_profiles, load_profile

FORMAT = 1
"""To be raised with any change that gives other samples for the same scenes."""

SHOWN_EXAMPLES = 3

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class LogsFailed(RuntimeError):
    """Logs that could not be read; the others are complete."""


@dataclass(frozen=True)
class Task:
    """What a process does with each log it is given.

    Attributes:
        writer: of conversations; ``None`` writes records.
        cameras: whose images are used, from left to right.
        maps: folder of nuPlan's maps, for the lanes in records; ``None`` leaves them out.
    """

    split: Split
    parts: PartFiles
    writer: ConversationWriter | None
    cameras: tuple[str, ...]
    maps: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the samples of a log: parts made with other settings are not mixed with these."""
        scenes = {name: value for name, value in vars(self.split.scene_filter).items() if name != "log_names"}
        return {
            "format": FORMAT,
            "kind": "records" if self.writer is None else "trajectory",
            "cameras": list(self.cameras),
            "prompt": None if self.writer is None else asdict(self.writer),
            "scene_filter": json.loads(json.dumps(scenes, default=str)),
            "part": self.split.part,
            "images_below": self.split.sensor_folder.relative_to(self.split.data_root).as_posix(),
        }

    def run(self, log: str) -> dict[str, Any]:
        """Write the part of one log and return its report."""
        skipped: list[SkippedScene] = []
        commands: Counter[str] = Counter()
        with redirect_stderr(io.StringIO()):  # NAVSIM's progress bar, one per log
            samples = list(self._samples(log, skipped, commands))
        report = {"scenes": len(samples), "skipped": [asdict(scene) for scene in skipped], "commands": commands}
        self.parts.write(log, samples, report)
        return report

    def _samples(self, log: str, skipped: list[SkippedScene], commands: Counter[str]) -> Iterator[dict[str, Any]]:
        for record in log_records(self.split, log, self.cameras, self.maps):
            if isinstance(record, SkippedScene):
                skipped.append(record)
                continue
            try:
                sample = record.to_dict() if self.writer is None else trajectory_sample(record, self.writer)
            except NoSample as error:
                skipped.append(SkippedScene(record.token, str(error)))
                continue
            commands[record.command] += 1
            yield sample


def write_dataset(task: Task, workers: int) -> dict[str, Any]:
    """Write the data set of a task; logs whose parts are complete are left alone.

    Args:
        task: what to write.
        workers: processes.

    Returns:
        The summary, which also lies beside the file: scenes, skipped by reason, commands, settings.

    Raises:
        InUse: if another process writes the same file.
        OtherSettings: if the file, or parts of it, were made with other settings.
        LogsFailed: if logs could not be read.
        UnusableSplit: if no scene gives a sample.
        OSError: if the disk is full.
    """
    with only_one(task.parts.output):
        return _write_dataset(task, workers)


def _write_dataset(task: Task, workers: int) -> dict[str, Any]:
    parts, logs = task.parts, task.split.logs
    settings = {**task.settings(), "logs": hashlib.sha256("\n".join(logs).encode()).hexdigest()}
    if parts.finished(settings):
        finished: dict[str, Any] = json.loads(parts.summary.read_text(encoding="utf-8"))
        return finished
    parts.start(settings)
    reports = {log: report for log in logs if (report := parts.report(log)) is not None}
    missing = [log for log in logs if log not in reports]
    failed: dict[str, str] = {}
    with tqdm(total=len(logs), initial=len(reports), desc="Reading scenes", unit="log", file=sys.stderr) as progress:
        for finished_log, outcome in _run(task, missing, workers):
            if isinstance(outcome, str):
                failed[finished_log] = outcome
            else:
                reports[finished_log] = outcome
            progress.update()
            progress.set_postfix(scenes=sum(report["scenes"] for report in reports.values()), refresh=False)
    if failed:
        listed = "\n".join(f"  {log}: {reason}" for log, reason in sorted(failed.items()))
        raise LogsFailed(
            f"{len(failed)} of {len(logs)} logs could not be read; the others are kept, run this again to continue, or "
            f"leave these out:\n{listed}"
        )
    summary = {**_summary([reports[log] for log in logs]), "settings": settings}
    if not summary["scenes"]:
        parts.discard()
        raise UnusableSplit(f"no scene gives a sample, nothing was written:\n{summary_text(summary)}")
    parts.merge(logs, summary)
    return summary


def _run(task: Task, logs: Sequence[str], workers: int) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each log with its report, or what went wrong, as they come; a few logs per process wait at a time."""
    if workers <= 1 or len(logs) <= 1:
        for log in logs:
            yield log, _attempt(task, log)
        return
    with ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_the_parent) as pool:
        waiting: dict[Future[dict[str, Any] | str], str] = {}
        ahead = iter(logs)
        try:
            while True:
                for log in islice(ahead, 2 * workers - len(waiting)):
                    waiting[pool.submit(_attempt, task, log)] = log
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _attempt(task: Task, log: str) -> dict[str, Any] | str:
    try:
        return task.run(log)
    except Exception as error:  # a damaged pickle raises nearly anything
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise  # of the disk, not of this log
        return f"{type(error).__name__}: {error}"


def _summary(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    commands: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for report in reports:
        commands.update(report["commands"])
        for scene in report["skipped"]:
            skipped[scene["reason"]] += 1
            shown = examples.setdefault(scene["reason"], [])
            if len(shown) < SHOWN_EXAMPLES:
                shown.append(f"{scene['token']} {scene['detail']}".strip())
    return {
        "scenes": sum(report["scenes"] for report in reports),
        "logs": len(reports),
        "logs_without_scenes": sum(not report["scenes"] for report in reports),
        "commands": {command: commands[command] for command in DRIVING_COMMANDS},
        "skipped": dict(skipped.most_common()),
        "examples": examples,
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for people, several lines."""
    scenes = summary["scenes"]
    lines = [f"{scenes} scenes of {summary['logs']} logs ({summary['logs_without_scenes']} of them without one)"]
    shares = (f"{name} {count} ({count / max(scenes, 1):.1%})" for name, count in summary["commands"].items())
    lines.append("commands: " + ", ".join(shares))
    lines.append(f"skipped: {sum(summary['skipped'].values())}")
    for reason, count in summary["skipped"].items():
        lines += [f"  {count} {reason}", *(f"    {example}" for example in summary["examples"][reason])]
        if count > SHOWN_EXAMPLES:
            lines.append("    ...")
    return "\n".join(lines)


def open_profile(profile: str, cam_type: str, vlm: str | None) -> tuple[PromptProfile, ConversationWriter]:
    """A prompt profile for the cameras of ``cam_type``, and its writer.

    Args:
        profile: name, path or ``auto``, as ``vlm.prompt_profile``.
        cam_type: ``single`` or ``multi``.
        vlm: folder or hub id of a VLM whose tokenizer spells out a profile of token ids (``published``); its weights
            are not read.

    Raises:
        PromptError: for a profile that is unknown, of other cameras, or needs a tokenizer where there is none.
        VLMCheckpointError: if there is no tokenizer in ``vlm``.
    """
    if vlm is None:
        loaded = load_profile(profile, CAMERA_SETS[cam_type])
        return loaded, ConversationWriter.of(loaded, None)
    from navsim_recogdrive.vlm.preparation import load_preparation  # brings torch and transformers

    preparation = load_preparation(VLMSettings(vlm, prompt_profile=profile, cam_type=cam_type))
    return preparation.profile, ConversationWriter.of(preparation.profile, preparation.tokenizer)


def write_entry(output: Path, name: str, entry: Entry, profile: PromptProfile) -> Path:
    """Write the mixture of one data set of trajectory questions beside it, and its profile unless it is a built-in one.

    Args:
        output: the JSONL file.
        name: of the data set.
        entry: of the mixture, but for its profile.
        profile: that the questions were written with.

    Returns:
        The mixture's path.
    """
    known = next((one for one in builtin_profiles() if PromptProfile.load(one) == profile), None)
    if known is None:
        path = output.with_suffix(".prompt_profile.json").absolute()
        write_whole(path, profile.to_json().encode())
        known = str(path)
    mixture = output.with_suffix(".mixture.json")
    write_mixture(mixture, {name: replace(entry, prompt_profile=known)})
    return mixture


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.qa_dataset",
        description="Write training data of stage 1 from NAVSIM's logs; other arguments are Hydra overrides, as for "
        "run_training.py: train_test_split=navtrain, train_logs=[...], train_test_split.scene_filter.frame_interval=1",
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSONL file; its report lies beside it")
    parser.add_argument("--kind", choices=("trajectory", "records"), default="trajectory")
    parser.add_argument(
        "--logs",
        choices=PARTS,
        default="auto",
        help="train: those of train_logs, as run_training.py; auto: train for splits of the trainval data, else all",
    )
    parser.add_argument("--vlm", default=os.environ.get("VLM_PATH"), help="whose tokenizer is used [VLM_PATH]")
    parser.add_argument("--prompt-profile", default="auto", help="name or JSON file [auto]")
    parser.add_argument("--cam-type", choices=tuple(CAMERA_SETS), default="single")
    parser.add_argument("--data-root", type=Path, help="what paths of images are relative to [OPENSCENE_DATA_ROOT]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes [all cores]")
    parser.add_argument("--name", help="of the data set in its mixture entry [name of the file]")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a data set; returns the exit status: 0 done, 1 incomplete, 2 wrong settings, 130 interrupted."""
    options, overrides = _parser().parse_known_args(arguments)
    unknown = [override for override in overrides if override.startswith("-")]
    if unknown:
        _parser().error(f"unknown option {unknown[0]}")
    try:
        profile = writer = None
        if options.kind == "trajectory":
            profile, writer = open_profile(options.prompt_profile, options.cam_type, options.vlm or None)
        split = open_split(overrides, options.logs, options.data_root)
        maps = map_root() if writer is None else None
        task = Task(split, PartFiles(options.output), writer, CAMERA_SETS[options.cam_type], maps)
        summary = write_dataset(task, options.workers)
        print(summary_text(summary))
        print(options.output)
        if profile is not None:
            entry = navsim_entry(
                "navsim_traj", split.data_root, options.output, summary["scenes"], cameras=task.cameras
            )
            print(write_entry(options.output, options.name or options.output.stem, entry, profile))
    except (UnusableSplit, NoMap, OtherSettings, PromptError, VLMCheckpointError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (LogsFailed, InUse) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a process was killed (out of memory?); run this again with fewer --workers", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}; what is complete is kept, run this again to continue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run this again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
