"""What is known of the scenes beside their scores: log, driving command, speed; each optional."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from navsim_recogdrive.observation import DRIVING_COMMANDS

COLUMNS = ("token", "log_name", "command", "speed")
"""Of the CSV that ``python -m navsim_recogdrive.agents.scene_facts`` writes; only ``token`` must be there."""


class UnreadableFacts(ValueError):
    """A file of scene facts that is none."""


@dataclass(frozen=True)
class SceneFacts:
    """What is known of one scene.

    Attributes:
        log_name: of the drive it was cut from; empty where it is not known.
        command: one of :data:`~navsim_recogdrive.observation.DRIVING_COMMANDS`; empty where it is not known.
        speed: of the ego vehicle at the time of planning, metres per second; NaN where it is not known.
    """

    log_name: str = ""
    command: str = ""
    speed: float = math.nan


def read_facts(path: Path) -> dict[str, SceneFacts]:
    """Facts by token, from a CSV with some of :data:`COLUMNS`.

    Raises:
        UnreadableFacts: naming the file, the row and the fix.
    """
    facts = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "token" not in (reader.fieldnames or ()):
                raise UnreadableFacts(f"{path} has no column token; expected some of {', '.join(COLUMNS)}")
            for row in reader:
                facts[row["token"]] = _facts(path, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFacts(f"{path} cannot be read: {error}") from error
    return facts


def _facts(path: Path, row: dict[str, str]) -> SceneFacts:
    command, speed = row.get("command") or "", row.get("speed") or "nan"
    if command and command not in DRIVING_COMMANDS:
        raise UnreadableFacts(
            f"{path}: the command of scene {row['token']} is {command!r}, expected "
            f"{', '.join(DRIVING_COMMANDS)} or none"
        )
    try:
        return SceneFacts(row.get("log_name") or "", command, float(speed))
    except ValueError:
        raise UnreadableFacts(f"{path}: the speed of scene {row['token']} is {speed!r}, expected m/s") from None


def logs_of_metric_cache(folder: Path) -> dict[str, str]:
    """Log name by token, from the paths ``LOG/TYPE/TOKEN/metric_cache.pkl`` of a metric cache; opens no pickle.

    Raises:
        UnreadableFacts: if the folder is no metric cache.
    """
    logs = {}
    for file in sorted((folder / "metadata").glob("*.csv")):
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            parts = Path(line.strip()).parts
            if len(parts) >= 4:
                logs[parts[-2]] = parts[-4]
    if not logs:
        logs = {path.parent.name: path.parts[-4] for path in folder.glob("*/*/*/metric_cache.pkl")}
    if not logs:
        raise UnreadableFacts(f"{folder} is no metric cache: it has neither metadata/*.csv nor LOG/TYPE/TOKEN folders")
    return logs


@dataclass(frozen=True)
class RunSettings:
    """What NAVSIM's runner was told, from the settings that Hydra keeps beside a score CSV.

    Attributes:
        shown: settings to show, by name.
        metric_cache: its folder, if it is still there.
    """

    shown: dict[str, str]
    metric_cache: Path | None


def read_settings(score_file: Path) -> RunSettings:
    """The settings of the run that wrote a CSV; empty where the CSV was copied away from them."""
    kept = score_file.parent / "code" / "hydra"
    config = _yaml(kept / "config.yaml")
    if config is None:
        return RunSettings({}, None)
    wanted = {
        "agent": ("agent", "_target_"),
        "checkpoint": ("agent", "checkpoint_path"),
        "VLM": ("agent", "vlm", "path"),
        "split": ("train_test_split", "data_split"),
    }
    found = {name: _at(config, keys) for name, keys in wanted.items()}
    # The config has the folder of the logs, which navtest and navhard share; which file it came from Hydra notes apart.
    choices = _at(_yaml(kept / "hydra.yaml"), ("hydra", "runtime", "choices"))
    found["split"] = _at(choices, ("train_test_split",)) or found["split"]
    shown = {name: str(value) for name, value in found.items() if value and "${" not in str(value)}
    if "agent" in shown:
        shown["agent"] = shown["agent"].rpartition(".")[2]
    cache = _at(config, ("metric_cache_path",))
    folder = Path(cache) if isinstance(cache, str) and "${" not in cache else None
    return RunSettings(shown, folder if folder is not None and folder.is_dir() else None)


def _yaml(path: Path) -> Any:
    """What a file holds; ``None`` where it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _at(config: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config
