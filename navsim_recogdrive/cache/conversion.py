"""Converting a cache: between modes, or from one that other software made, into a new folder.

Files appear whole or not at all, and scenes that are there are left alone, so an interrupted conversion goes on where
it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from navsim_recogdrive.cache.hidden_state import UNKNOWN_ORIGIN, HiddenState
from navsim_recogdrive.cache.hidden_state_features import HiddenStateFeatures
from navsim_recogdrive.cache.identity import FOLDER, CacheIdentity, claim, read_identity
from navsim_recogdrive.cache.peek import cached_scene_folders, peek_hidden_state, read_content
from navsim_recogdrive.cache.scan import Layout
from navsim_recogdrive.cache.scene_key import SceneKey
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.cache.unpickling import load_feature
from navsim_recogdrive.cache.writing import write_feature, write_whole

_BY_PRECISION = ("int8", "bf16", "fp32")


class NotConvertible(ValueError):
    """A scene that holds something else than was said, or cannot become what is asked for."""


@dataclass(frozen=True)
class Entry:
    """A value in a cache of other software: ``key`` in the dict of the file ``file``."""

    file: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Entry:
        """From ``FILE.gz:KEY``.

        Raises:
            ValueError: if it is not of that form.
        """
        file, colon, key = text.partition(":")
        if not colon or not key or not file.endswith(".gz"):
            raise ValueError(f"expected FILE.gz:KEY, found {text!r}")
        return cls(file, key)


@dataclass
class ConversionReport:
    """What became of the scenes.

    Attributes:
        converted: scenes written now.
        skipped: scenes that were there already.
        completed: those of them that got files which they lacked.
        rounded: converted scenes with values that bf16 does not hold, and were rounded to it.
        failed: what was wrong with the others, by scene folder.
        source_bytes: bytes of the hidden states' files that were converted now.
        target_bytes: what they take now.
    """

    converted: int = 0
    skipped: int = 0
    completed: int = 0
    rounded: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    source_bytes: int = 0
    target_bytes: int = 0

    def add(self, folder: Path, outcome: tuple[int, int, bool] | str | bool) -> None:
        """Add one scene: bytes before and after and if it was rounded; what was wrong; or if, skipped, it got files."""
        if isinstance(outcome, bool):
            self.skipped += 1
            self.completed += outcome
        elif isinstance(outcome, str):
            self.failed[folder] = outcome
        else:
            before, after, rounded = outcome
            self.converted += 1
            self.source_bytes += before
            self.target_bytes += after
            self.rounded += rounded


@dataclass(frozen=True)
class _Scene:
    rows: Tensor
    padding_rows: int
    key: bytes | None = None
    origin: bytes = UNKNOWN_ORIGIN


def convert_own(
    source: Path, target: Path, layout: Layout, names: tuple[str, str], mode: str, workers: int
) -> ConversionReport:
    """Convert a cache of this package to ``mode``; the other files of a scene are copied.

    Scenes of mode ``int8`` are not converted to another mode: it would hide that they are inexact.

    Args:
        source: root of the cache.
        target: root of the new one.
        layout: the files of a scene.
        names: of the scene key and the hidden state in their file.
        mode: one of :data:`~navsim_recogdrive.cache.codec.MODES`.
        workers: threads.
    """
    state_file = f"{layout.hidden_state}.gz"
    others = [f"{name}.gz" for name in layout.files if name != layout.hidden_state]

    def read(folder: Path) -> _Scene:
        path = folder / state_file
        head = peek_hidden_state(path)
        if head.info.mode == "int8" and mode != "int8":
            raise NotConvertible(
                f"{path} is of mode int8; in mode {mode} nothing would tell that it is inexact. Convert the cache that "
                "it was made from, or cache the split again"
            )
        rows = load_feature(read_content(path), path)[names[1]]
        return _Scene(rows, head.info.padding_rows, head.key, head.origin)

    def write_others(folder: Path, goal: Path) -> bool:
        lacking = [name for name in others if (folder / name).is_file() and not (goal / name).is_file()]
        for name in lacking:
            write_whole(goal / name, (folder / name).read_bytes())
        return bool(lacking)

    return _convert(source, target, state_file, state_file, names, mode, workers, read, write_others)


def convert_foreign(
    source: Path,
    target: Path,
    layout: Layout,
    names: tuple[str, str],
    mode: str,
    workers: int,
    *,
    state: Entry,
    small: Mapping[str, Callable[[Path], dict[str, Any]]],
    features: int | None = None,
    origin: bytes = UNKNOWN_ORIGIN,
) -> ConversionReport:
    """Convert a cache that other software made: float hidden states, padded with equal rows in front.

    All scenes must have the shape of the first. Scenes converted like this have no key, so they can be trained from but
    not be found by what the VLM sees.

    Args:
        source: root of the cache, ``LOG/TOKEN/FILE.gz``.
        target: root of the new one.
        layout: the files of a scene in it.
        names: of the scene key and the hidden state in their file.
        mode: one of :data:`~navsim_recogdrive.cache.codec.MODES`.
        workers: threads.
        state: where the hidden states are.
        small: by name of the other files of a scene, what makes their contents from its folder.
        features: columns that the hidden states must have; ``None``: those of the first.
        origin: mark of what computed them.
    """
    shapes: list[torch.Size] = []

    def read(folder: Path) -> _Scene:
        if _is_own(folder / state.file):
            raise NotConvertible(
                f"{folder / state.file} is of this package: convert its cache without naming a source file and key"
            )
        rows = read_entry(folder, state)
        rows = rows[0] if rows.ndim == 3 and len(rows) == 1 else rows
        if rows.ndim != 2 or not rows.is_floating_point():
            raise NotConvertible(f"{state.key} must be floats of shape [rows, features], found {_what(rows)}")
        shapes.append(rows.shape)
        if rows.shape != shapes[0] or rows.shape[1] != (features or rows.shape[1]):
            raise NotConvertible(
                f"{state.key} has shape {list(rows.shape)}, expected [{shapes[0][0]}, {features or shapes[0][1]}]"
            )
        rows = rows if rows.dtype == torch.bfloat16 else rows.float()
        return _Scene(rows, leading_equal_rows(rows), None, origin)

    def write_small(folder: Path, goal: Path) -> bool:
        lacking = [name for name in small if not (goal / f"{name}.gz").is_file()]
        for name in lacking:
            write_feature(goal / f"{name}.gz", small[name](folder))
        return bool(lacking)

    return _convert(source, target, state.file, f"{layout.hidden_state}.gz", names, mode, workers, read, write_small)


def check_target(source: Path, target: Path) -> None:
    """Refuse folders, both resolved, that a conversion must not go from and to.

    Raises:
        ValueError: if one is, or lies in, the other, or if ``target`` lies in another cache.
    """
    if source == target:
        raise ValueError("SOURCE and TARGET are the same folder; a conversion writes a new one")
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise ValueError(f"{target} and {source} must not lie within each other; a conversion writes a new folder")
    for folder in target.parents:
        if (folder / FOLDER).is_dir():
            raise ValueError(f"{target} lies in the cache {folder}, whose folders are logs; choose another TARGET")


def check_precision(source: CacheIdentity | None, mode: str) -> None:
    """Refuse to convert what was rounded to a finer mode, which would hide it.

    Raises:
        ValueError: if the mode of ``source`` has lost something and ``mode`` is finer.
    """
    # Of a source without identity, conversion itself refuses int8 scene by scene.
    rounded = source is not None and (source.mode == "int8" or (source.mode, source.dtype) == ("bf16", "float32"))
    if source is not None and rounded and _BY_PRECISION.index(mode) > _BY_PRECISION.index(source.mode):
        raise ValueError(
            f"the source is of mode {source.mode}, which has rounded what its VLM computed; in mode {mode} nothing "
            "would tell. Convert the cache that it was made from, or cache the split again"
        )


def claim_target(target: Path, layout: Layout, identity: CacheIdentity | None) -> None:
    """Make ``target`` a cache of ``identity``, or make sure that a conversion that was interrupted there had the same.

    Raises:
        ValueError: if it is a cache of something else, or if only one of the two says what made it.
        OSError: if it cannot be written.
    """
    if identity is None:
        found = read_identity(target)
        if found is not None:
            raise ValueError(
                f"{target} is a cache of {found.describe()}, and nobody says what made the source: use another TARGET"
            )
        return
    begun = target.is_dir() and next(cached_scene_folders(target, None, f"{layout.hidden_state}.gz"), None)
    if begun and read_identity(target) is None:
        raise ValueError(
            f"{target} holds scenes that were converted without saying what made them: use another TARGET, or leave "
            "out --vlm"
        )
    claim(target, identity)


def read_entry(folder: Path, entry: Entry) -> Tensor:
    """One value of a scene of other software's cache.

    Raises:
        DamagedFeature: if its file cannot be read.
        NotConvertible: if the file does not hold it, listing what it does hold.
    """
    path = folder / entry.file
    content = load_feature(read_content(path), path)
    if entry.key not in content:
        held = ", ".join(f"{key} ({_what(value)})" for key, value in content.items())
        raise NotConvertible(f"{entry.file} has no entry {entry.key!r}; it holds: {held}")
    value = content[entry.key]
    if not isinstance(value, (Tensor, np.ndarray)):
        raise NotConvertible(f"{entry.key} of {entry.file} must be a tensor or an array, found {type(value).__name__}")
    return torch.as_tensor(value)


def leading_equal_rows(rows: Tensor) -> int:
    """How many of the first rows of ``rows`` [L, D] are padding: equal to each other; 0 if the second one differs."""
    differing = (rows != rows[:1]).any(dim=1)
    equal = int(differing.int().argmax()) if differing.any() else len(rows)
    return equal if equal > 1 else 0


def _convert(
    source: Path,
    target: Path,
    source_file: str,
    target_file: str,
    names: tuple[str, str],
    mode: str,
    workers: int,
    read: Callable[[Path], _Scene],
    write_others: Callable[[Path, Path], bool],
) -> ConversionReport:
    report = ConversionReport()

    def convert(folder: Path) -> tuple[int, int, bool] | bool:
        goal = target.joinpath(*folder.parts[-2:])
        if (goal / target_file).is_file():
            found = peek_hidden_state(goal / target_file).info.mode
            if found != mode:
                raise NotConvertible(f"{goal / target_file} is there in mode {found}, not {mode}: use another target")
            return write_others(folder, goal)  # the earlier conversion may have been told of fewer of them
        scene = read(folder)
        goal.mkdir(parents=True, exist_ok=True)
        write_others(folder, goal)
        content: dict[str, Tensor] = {} if scene.key is None else {names[0]: SceneKey.wrap(scene.key)}
        content[names[1]] = HiddenState.wrap(scene.rows, scene.padding_rows, mode, scene.origin)
        # Last, because it says that the scene is done.
        write_feature(goal / target_file, HiddenStateFeatures(content))
        rounded = mode != "fp32" and not torch.equal(scene.rows.bfloat16().to(scene.rows.dtype), scene.rows)
        return (folder / source_file).stat().st_size, (goal / target_file).stat().st_size, rounded

    def attempt(folder: Path) -> tuple[Path, tuple[int, int, bool] | str | bool]:
        try:
            return folder, convert(folder)
        except (DamagedFeature, NotConvertible, ValueError) as error:
            return folder, str(error)

    folders = list(cached_scene_folders(source, None, source_file))
    with (
        ThreadPoolExecutor(max_workers=workers) as pool,
        tqdm(total=len(folders), desc="Converting", unit="scene") as bar,
    ):
        # The first alone: it says what all others must look like.
        for run, some in ((map, folders[:1]), (pool.map, folders[1:])):
            try:
                for folder, outcome in run(attempt, some):
                    report.add(folder, outcome)
                    bar.update()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return report


def _is_own(path: Path) -> bool:
    try:
        peek_hidden_state(path)
    except DamagedFeature:
        return False
    return True


def _what(value: object) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
