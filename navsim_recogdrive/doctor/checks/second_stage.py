"""The second stage of NAVSIM v2.x: the folders of its synthetic scenes and images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.checks.data import entries_of, has_files, listed
from navsim_recogdrive.doctor.context import Context, Navsim
from navsim_recogdrive.doctor.findings import Finding, ok
from navsim_recogdrive.doctor.request import CHALLENGE_SPLIT

_CHECK = "data.second_stage"
_STAGES = ("cache", "evaluate", "submit")

_SCENES = {
    "navhard_two_stage": "synthetic_scene_pickles",
    "warmup_two_stage": "synthetic_scene_pickles",
    CHALLENGE_SPLIT: "openscene_meta_datas",
}
"""Folder of the scenes of each two-stage split below the folder of its name, as in ``scripts/planning.sh``."""


def check(context: Context) -> Iterator[Finding]:
    """The second stage of the split, or without one, of all whose folder is there."""
    text = context.request.environment.get("OPENSCENE_DATA_ROOT", "")
    root, split = Path(text), context.split
    if not text or not root.is_dir():
        return  # said by the check of the environment
    if split is None:
        for name in _SCENES:
            if (root / name).is_dir():
                yield _look(context, root, name)
    elif split in _SCENES:
        yield _look(context, root, split)
    elif "two_stage" in split and _lists_none(context, split):
        yield context.request.missing(
            _CHECK,
            f"NAVSIM lists no second-stage scenes of {split}",
            f"another split: {', '.join(_SCENES)}",
            *_STAGES,
        )


def _lists_none(context: Context, split: str) -> bool:
    """Whether NAVSIM has the split's filter, and it names no second-stage scenes."""
    if context.navsim is None:
        return False
    file = _filters(context.navsim) / f"{split}.yaml"
    return file.is_file() and not listed(file, "reactive_synthetic_initial_tokens")


def _filters(navsim: Navsim) -> Path:
    return navsim.config / "common" / "train_test_split" / "scene_filter"


def _look(context: Context, root: Path, split: str) -> Finding:
    scenes, images = root / split / _SCENES[split], root / split / "sensor_blobs"
    download = f"download {split} with NAVSIM's download/ scripts into {root / split}"
    there = sum(entry.name.endswith(".pkl") for entry in entries_of(scenes))
    empty = [str(folder) for folder, full in ((scenes, there > 0), (images, has_files(images))) if not full]
    if empty:
        found = f"the second stage of {split} is missing: nothing in {' and '.join(empty)}"
        return context.request.missing(_CHECK, found, download, *_STAGES)
    wanted = _wanted(context, split)
    if there < wanted:
        found = f"{scenes} holds {there} files of scenes, the second stage of {split} has at least {wanted}"
        return context.request.missing(_CHECK, found, f"{download}: the rest is missing", *_STAGES)
    return ok(_CHECK, f"{split}: {there} files of second-stage scenes in {scenes}, images in {images}")


def _wanted(context: Context, split: str) -> int:
    """The least number of files that hold the split's second-stage scenes; 0 where NAVSIM's configs cannot be read."""
    if context.navsim is None:
        return 0
    file = _filters(context.navsim) / f"{split}.yaml"
    tokens = len(listed(file, "reactive_synthetic_initial_tokens") or [])
    # A file of the challenge holds two scenes, half a second apart.
    return (tokens + 1) // 2 if split == CHALLENGE_SPLIT else tokens
