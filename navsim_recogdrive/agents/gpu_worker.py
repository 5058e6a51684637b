"""A NAVSIM worker that divides the GPUs of a node among Ray's tasks: ``worker=ray_shared_gpus``.

NAVSIM maps its scenes with ``Task(fn)``, which asks for no GPU, so that its own Ray workers either see none or all of
them take the first. Here every task is given a share of one GPU, and Ray sets ``CUDA_VISIBLE_DEVICES`` accordingly:
``agent.device=auto`` is then the right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from nuplan.planning.utils.multithreading.ray_execution import ray_map
from nuplan.planning.utils.multithreading.worker_pool import Task, WorkerPool, WorkerResources

from navsim_recogdrive.policy.settings import InvalidSetting

_RAY_UNIT = 10_000
"""Ray counts shares of a GPU in so many parts."""


def share_of_gpu(workers_per_gpu: int) -> float:
    """What each of ``workers_per_gpu`` tasks asks for, so that Ray puts so many on a GPU and no more.

    Raises:
        InvalidSetting: if it is less than one, or more than Ray can divide a GPU into.
    """
    if not 1 <= workers_per_gpu <= _RAY_UNIT // 2:
        raise InvalidSetting(f"worker.workers_per_gpu must be 1 to {_RAY_UNIT // 2}, found {workers_per_gpu}")
    return (_RAY_UNIT // workers_per_gpu) / _RAY_UNIT


def visible_gpus() -> int:
    """Number of GPUs that this process sees; starts no CUDA."""
    return torch.cuda.device_count()


class RaySharedGPUs(WorkerPool):
    """Ray on this node with ``gpus`` times ``workers_per_gpu`` tasks at a time, each with its share of a GPU.

    Args:
        gpus: GPUs to use; ``None``: all that this process sees.
        workers_per_gpu: tasks that share one; each is a process with a VLM of its own.
        log_to_driver: show what the tasks print.
        output_dir: the run's output folder; NAVSIM gives it.
        logs_subdir: folder in it for a log of each task.

    Raises:
        InvalidSetting: if there are fewer GPUs than asked for, or none.
    """

    def __init__(
        self,
        gpus: int | None = None,
        workers_per_gpu: int = 1,
        log_to_driver: bool = True,
        output_dir: str | Path | None = None,
        logs_subdir: str = "logs",
    ) -> None:
        self._share = share_of_gpu(workers_per_gpu)
        visible = visible_gpus()
        if visible == 0:
            raise InvalidSetting(
                "worker=ray_shared_gpus, but this process sees no GPU: use worker=ray_distributed_no_torch"
            )
        gpus = visible if gpus is None else gpus
        if not 1 <= gpus <= visible:
            raise InvalidSetting(f"worker.gpus must be 1 to {visible}, the GPUs that this process sees, found {gpus}")
        self._log_dir = None if output_dir is None else Path(output_dir) / logs_subdir
        tasks = gpus * workers_per_gpu
        if ray.is_initialized():
            ray.shutdown()
        ray.init(num_cpus=tasks, num_gpus=gpus, include_dashboard=False, log_to_driver=log_to_driver)
        # NAVSIM makes one task per CPU that a worker says it has.
        super().__init__(
            WorkerResources(number_of_nodes=1, number_of_gpus_per_node=gpus, number_of_cpus_per_node=tasks)
        )

    def shutdown(self) -> None:
        """Stop Ray."""
        ray.shutdown()

    def _with_share(self, task: Task) -> Task:
        return replace(task, num_gpus=self._share, num_cpus=1)

    def _map(self, task: Task, *item_lists: Iterable[list[Any]], verbose: bool = False) -> list[Any]:
        results: list[Any] = ray_map(self._with_share(task), *item_lists, log_dir=self._log_dir)
        return results

    def submit(self, task: Task, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run one task; its result as a future."""
        task = self._with_share(task)
        remote = ray.remote(task.fn).options(num_gpus=task.num_gpus, num_cpus=task.num_cpus)
        future: Future[Any] = remote.remote(*args, **kwargs).future()
        return future
