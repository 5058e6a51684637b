"""Disk space against what the cache of a split takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.checks.environment import existing_parent
from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, ok, size
from navsim_recogdrive.doctor.request import TRAINING_SPLIT

_CHECK = "machine.disk"
_BYTES_PER_VALUE = {"bf16": 1.38, "int8": 0.86, "fp32": 1.38}
"""Of a cached hidden state, measured (docs/benchmarks.md); fp32 of a VLM that computes in bf16."""
_FLOAT32_VLM = 4.0  # the same at most for a VLM that computes in float32
_TILES = 2e6  # bytes of a scene's image tiles
_SMALL_FILES = 3 * 4096


def check(context: Context) -> Iterator[Finding]:
    """Scenes that are not cached yet times their bytes."""
    request = context.request
    folder = request.cache or _default(request.environment.get("NAVSIM_EXP_ROOT", ""))
    scenes = ((context.value("settings") or {}).get("scenes") or {}).get(context.split or TRAINING_SPLIT)
    if folder is None or scenes is None:
        return  # no disk to look at, or a split of unknown size
    cached = _count_scenes(folder)
    left = max(0, scenes - cached)
    wanted, free = left * scene_bytes(context), shutil.disk_usage(existing_parent(folder)).free
    kind = "image tiles" if context.is_joint else f"hidden states ({context.agent.get('cache_mode', 'bf16')})"
    sentence = (
        f"{kind} of {left} scenes of {context.split or TRAINING_SPLIT}"
        + (f" ({cached} are there)" if cached else "")
        + f" take about {size(wanted)}, {size(free)} are free at {folder}"
    )
    if wanted > free:
        fix = "another disk (--cache FOLDER)"
        if not context.is_joint and context.agent.get("cache_mode") != "int8":
            fix += ", or agent.cache_mode=int8 for about 0.6 of it"
        yield request.missing(_CHECK, sentence, fix, "cache")
    else:
        yield ok(_CHECK, f"{sentence}; python -m navsim_recogdrive.cache estimate measures it")


def scene_bytes(context: Context) -> float:
    """Bytes of a scene's files."""
    if context.is_joint:
        return _TILES + _SMALL_FILES
    mode = context.agent.get("cache_mode", "bf16")
    per_value = _BYTES_PER_VALUE[mode]
    if mode == "fp32" and context.vlm_settings.get("dtype") == "float32":
        per_value = _FLOAT32_VLM
    return context.hidden_length * context.hidden_size * per_value + _SMALL_FILES


def _default(experiments: str) -> Path | None:
    return Path(experiments) if experiments else None


def _count_scenes(cache: Path) -> int:
    """Scene folders of a cache; 0 where it is none."""
    if not (cache / "_recogdrive").is_dir():
        return 0
    scenes = 0
    with os.scandir(cache) as logs:
        for log in logs:
            if log.is_dir() and log.name != "_recogdrive":
                with os.scandir(log.path) as entries:
                    scenes += sum(1 for _ in entries)
    return scenes
