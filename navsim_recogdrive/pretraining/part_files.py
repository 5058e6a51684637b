"""A JSONL file written in parts, one per log, by many processes, so that a killed run continues where it was.

A part is complete when its report is in place, which is written last; both are put in place by renaming. Merged in the
order of the logs the file is the same whatever the number of processes and restarts. One run at a time writes them
(:func:`~navsim_recogdrive.pretraining.locking.only_one`).
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SETTINGS = "settings.json"


class OtherSettings(ValueError):
    """Parts or a finished file that were made with other settings."""


@dataclass(frozen=True)
class PartFiles:
    """The parts of ``output``, in ``output.parts`` beside it.

    Attributes:
        output: the finished file; its report is ``output.summary.json``.
    """

    output: Path

    @property
    def folder(self) -> Path:
        """Where parts lie until they are merged."""
        return self.output.with_name(self.output.name + ".parts")

    @property
    def summary(self) -> Path:
        """The finished file's report."""
        return self.output.with_name(self.output.name + ".summary.json")

    def finished(self, settings: Mapping[str, Any]) -> bool:
        """Whether the file is there, made with just these settings.

        Raises:
            OtherSettings: if it is there but was made with others, or without a report.
        """
        if not self.output.exists():
            return False
        found = _read(self.summary)
        if found is None:
            raise OtherSettings(f"{self.output} exists and is not ours ({self.summary.name} is missing): move it away")
        self._check(found.get("settings"), settings, self.output)
        return True

    def start(self, settings: Mapping[str, Any]) -> None:
        """Make the folder of parts, or make sure that those in it were made with these settings.

        Half-written files that a killed run left in it are removed.

        Raises:
            OtherSettings: if they were made with others.
        """
        path = self.folder / _SETTINGS
        found = _read(path)
        if found is not None:
            self._check(found, settings, self.folder)
            for stale in self.folder.glob("*.partial"):
                stale.unlink(missing_ok=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(settings, indent=1))

    def report(self, log: str) -> dict[str, Any] | None:
        """The report of a complete part, ``None`` for one that is not."""
        return _read(self.folder / f"{log}.json") if (self.folder / f"{log}.jsonl").is_file() else None

    def write(self, log: str, samples: Iterable[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
        """Write one part: its samples, then its report."""
        lines = "".join(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in samples)
        _write(self.folder / f"{log}.jsonl", lines)
        _write(self.folder / f"{log}.json", json.dumps(report))

    def merge(self, logs: Sequence[str], summary: Mapping[str, Any]) -> None:
        """Join the parts of ``logs`` in this order into the file, write its report and remove the parts.

        Raises:
            FileNotFoundError: if a part is not there; nothing is changed then.
        """
        unfinished = _partial(self.folder / "merged.jsonl")
        with unfinished.open("wb") as target:
            for log in logs:
                with (self.folder / f"{log}.jsonl").open("rb") as part:
                    shutil.copyfileobj(part, target)
            target.flush()
            os.fsync(target.fileno())
        _write(self.summary, json.dumps(summary, indent=1))
        os.replace(unfinished, self.output)
        self.discard()

    def discard(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder)

    def _check(self, found: Any, expected: Mapping[str, Any], where: Path) -> None:
        found = found if isinstance(found, dict) else {}
        expected = json.loads(json.dumps(expected))
        if differing := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
            shown = ", ".join(
                f"{name}: {_short(found.get(name))} then, {_short(expected.get(name))} now" for name in differing
            )
            raise OtherSettings(f"{where} was made with other settings ({shown}): write to another file, or remove it")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, text: str) -> None:
    partial = _partial(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    """Another name for a file until it is whole; nodes may share the folder, and their process ids."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
