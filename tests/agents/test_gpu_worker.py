"""Ray with GPUs shared between its tasks: Ray's own bookkeeping needs no GPU to be there."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

pytestmark = pytest.mark.navsim


def test_every_task_gets_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hydra.utils import instantiate
    from nuplan.planning.utils.multithreading.worker_utils import worker_map

    from navsim_recogdrive.agents import gpu_worker
    from navsim_recogdrive.agents.compat import runner_config_folder

    def gpu_and_process(chunk: list[Any]) -> list[tuple[str | None, int]]:
        (tmp_path / f"{chunk[0]}.there").touch()
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("*.there"))) < 4 and time.monotonic() < end:
            time.sleep(0.05)  # all four at the same time
        return [(os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()) for _ in chunk]

    monkeypatch.setattr(gpu_worker, "visible_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    overrides = ["worker=ray_shared_gpus", "worker.workers_per_gpu=2", "train_test_split=test", "experiment_name=x"]
    with initialize_config_dir(str(runner_config_folder("pdm_scoring")), version_base=None):
        config = compose("default_run_pdm_score", overrides=overrides).worker
    handler = signal.getsignal(signal.SIGTERM)
    worker = instantiate(config, output_dir=str(tmp_path))  # as NAVSIM's build_worker does
    try:
        assert worker.number_of_threads == 4, "NAVSIM makes so many tasks"
        results = worker_map(worker, gpu_and_process, list(range(8)))
    finally:
        worker.shutdown()
        signal.signal(signal.SIGTERM, handler)  # Ray leaves one of its own, which ends the process
    assert Counter(gpu for gpu, _ in results) == {"4": 4, "7": 4}
    assert len({process for _, process in results}) == 4, "a process each"


@pytest.mark.parametrize(
    ("visible", "settings", "message"),
    [
        (0, {}, "sees no GPU: use worker=ray_distributed_no_torch"),
        (2, {"gpus": 3}, "worker.gpus must be 1 to 2, the GPUs that this process sees, found 3"),
        (2, {"gpus": 0}, "worker.gpus must be 1 to 2"),
        (2, {"workers_per_gpu": 0}, "worker.workers_per_gpu must be 1 to 5000, found 0"),
    ],
)
def test_settings_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, visible: int, settings: dict[str, int], message: str
) -> None:
    from navsim_recogdrive.agents import gpu_worker
    from navsim_recogdrive.policy.settings import InvalidSetting

    monkeypatch.setattr(gpu_worker, "visible_gpus", lambda: visible)
    with pytest.raises(InvalidSetting, match=message):
        gpu_worker.RaySharedGPUs(**settings)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 32])
def test_shares_fit_on_a_gpu_as_ray_counts_them(workers: int) -> None:
    from navsim_recogdrive.agents.gpu_worker import share_of_gpu

    share = round(share_of_gpu(workers) * 10_000)
    assert workers * share <= 10_000 < (workers + 1) * share
