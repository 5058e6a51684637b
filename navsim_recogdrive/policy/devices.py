"""Which GPU a process takes where it sees several and nobody told it.

NAVSIM's workers divide scenes among threads, forked processes or Ray tasks, and give none of them a GPU.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache

logger = logging.getLogger(__name__)

_NUMBERED_PROCESS = re.compile(r"(?:Process|PoolWorker)-(\d+)$")


def gpu_of_process(
    gpus: int, environment: Mapping[str, str], process_name: str = "MainProcess", ray_process: int | None = None
) -> int:
    """Index of the GPU that a process takes, below ``gpus``.

    A launcher's ``LOCAL_RANK`` decides; else the number of a process of a multiprocessing pool
    (``worker=single_machine_thread_pool worker.use_process_pool=true``); else, in a Ray task that sees all GPUs because
    it was given none, the process id, which spreads tasks about evenly; else it is the first. Threads of one process
    share a VLM and so a GPU.

    Args:
        gpus: how many the process sees, at least 1.
        environment: its environment variables.
        process_name: as :mod:`multiprocessing` names it.
        ray_process: process id, in a Ray task without a GPU of its own.
    """
    if environment.get("LOCAL_RANK"):
        return int(environment["LOCAL_RANK"]) % gpus
    numbered = _NUMBERED_PROCESS.search(process_name)
    if numbered is not None:
        return (int(numbered[1]) - 1) % gpus
    return 0 if ray_process is None else ray_process % gpus


def process_in_ray_without_gpu() -> int | None:
    """Id of this process if it runs a Ray task that was given no share of a GPU, else ``None``; does not import Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    return None if ray.get_gpu_ids() else os.getpid()


@lru_cache(maxsize=1)
def warn_of_hidden_gpus() -> None:
    """Say that the CPU is used because GPUs are hidden; once per process."""
    logger.warning(
        "CUDA_VISIBLE_DEVICES is empty in this process (older Ray hides the GPUs from tasks that ask for none): "
        "running on the CPU. Use worker=ray_shared_gpus, worker=single_machine_thread_pool or worker=sequential to "
        "keep them."
    )


@lru_cache(maxsize=1)
def warn_of_unshared_gpus(gpus: int) -> None:
    """Say that every Ray task loads a VLM onto GPUs that nobody divides; once per process."""
    logger.warning(
        "this Ray task was given no share of a GPU and takes one of the %d that it sees, as does every other task, "
        "each with a VLM of its own: memory may not suffice. Use worker=ray_shared_gpus worker.workers_per_gpu=N, or "
        "limit the tasks with worker.threads_per_node=N.",
        gpus,
    )
