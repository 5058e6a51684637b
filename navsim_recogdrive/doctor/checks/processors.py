"""Processor cores, the threads that libraries start on them, and the shared memory of DataLoader workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok, size, warning

_CPU, _SHARED = "machine.processors", "machine.shared_memory"
_CGROUP_2, _CGROUP_1 = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu")
_SHARED_FOLDER = Path("/dev/shm")
_BATCH = {"rl": 8}
_PUBLISHED_BATCH = 16
_BF16 = 2
_TILES = 9 * 448 * 448 * 3  # bytes of one image's tiles


def check(context: Context) -> Iterator[Finding]:
    """Cores against threads; then room for the batches on their way."""
    yield _threads(context)
    if context.request.wants("train", "rl") and _SHARED_FOLDER.is_dir():
        yield _shared(context)


def _threads(context: Context) -> Finding:
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable = granted_cores()
    setting = context.request.environment.get("OMP_NUM_THREADS", "")
    if setting and not (setting.isdigit() and int(setting) > 0):
        return error(_CPU, f"OMP_NUM_THREADS={setting!r} must be a number from 1 on", "export OMP_NUM_THREADS=1")
    if usable is not None and usable < seen and not setting:
        return warning(
            _CPU,
            f"this process sees {seen} cores and is granted {usable:g}: libraries start a thread for each that it "
            "sees, and these wait for each other",
            f"export OMP_NUM_THREADS={max(1, int(usable))}",
        )
    if setting and int(setting) > seen:
        return warning(_CPU, f"OMP_NUM_THREADS={setting} on {seen} cores", f"export OMP_NUM_THREADS={seen}")
    return ok(_CPU, f"{seen} cores, OMP_NUM_THREADS={setting or 'not set'}")


def granted_cores() -> float | None:
    """Cores that a container is granted, versions 1 and 2 of cgroups; ``None`` where there is no limit."""
    try:
        if _CGROUP_2.is_file():
            quota, period = _CGROUP_2.read_text().split()[:2]
        else:
            quota, period = ((_CGROUP_1 / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _shared(context: Context) -> Finding:
    """Batches that workers have ready lie in shared memory; where it is full they die by SIGBUS."""
    loader = (context.value("hydra") or {}).get("dataloader", {})
    joint = context.is_joint
    batch = loader.get("batch_size") or (2 if joint else _BATCH.get(context.request.stage or "", _PUBLISHED_BATCH))
    workers, ahead = loader.get("num_workers", 4), loader.get("prefetch_factor") or 2
    scene = _TILES if joint else context.hidden_length * context.hidden_size * _BF16
    wanted = workers * ahead * batch * scene
    there = shutil.disk_usage(_SHARED_FOLDER).total
    sum_of = f"{workers} workers x {ahead} batches x {batch} scenes x {size(scene)}"
    if wanted > there:
        return warning(
            _SHARED,
            f"{_SHARED_FOLDER} has {size(there)}; the DataLoader of one GPU keeps up to {size(wanted)} there "
            f"({sum_of}), and workers die with a bus error where it is full",
            f"docker run --shm-size={max(1, round(2 * wanted / 1e9))}g (or --ipc=host), or "
            "dataloader.params.num_workers and prefetch_factor smaller",
        )
    return ok(
        _SHARED, f"{_SHARED_FOLDER} has {size(there)}, the DataLoader of one GPU keeps up to {size(wanted)} ({sum_of})"
    )
