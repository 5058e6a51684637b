"""Which of several GPUs a process takes."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from navsim_recogdrive.policy import devices
from navsim_recogdrive.policy.backbones import resolve_device
from navsim_recogdrive.policy.devices import gpu_of_process, process_in_ray_without_gpu


@pytest.mark.parametrize(
    ("environment", "process", "ray_process", "expected"),
    [
        ({}, "MainProcess", None, 0),
        ({"LOCAL_RANK": "2"}, "MainProcess", None, 2),
        ({"LOCAL_RANK": "5"}, "ForkProcess-2", 7, 1),
        ({"LOCAL_RANK": ""}, "ForkProcess-2", None, 1),
        ({}, "ForkPoolWorker-4", None, 3),
        ({}, "SpawnProcess-5", None, 0),
        ({}, "MainProcess", 4711, 3),
        ({}, "Thread-3", None, 0),
    ],
)
def test_gpu_of_process(environment: dict[str, str], process: str, ray_process: int | None, expected: int) -> None:
    assert gpu_of_process(4, environment, process, ray_process) == expected


def _gpu(together: Any) -> int:
    together.wait()  # so that every process of the pool takes one task
    return gpu_of_process(3, {}, multiprocessing.current_process().name)


def test_processes_of_a_pool_take_different_gpus() -> None:
    with multiprocessing.Manager() as manager, ProcessPoolExecutor(3) as pool:
        assert sorted(pool.map(_gpu, [manager.Barrier(3)] * 3)) == [0, 1, 2]


def test_auto_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == torch.device("cuda", 3)


def test_a_ray_task_without_a_share_is_warned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = SimpleNamespace(worker=SimpleNamespace(mode=1))
    ray = SimpleNamespace(
        WORKER_MODE=1, is_initialized=lambda: True, get_runtime_context=lambda: task, get_gpu_ids=list
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(devices.os, "getpid", lambda: 4711)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    devices.warn_of_unshared_gpus.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_device("auto") == torch.device("cuda", 3)
    assert "Use worker=ray_shared_gpus worker.workers_per_gpu=N" in caplog.text

    ray.get_gpu_ids = lambda: [0]
    assert process_in_ray_without_gpu() is None, "it has a share"
    ray.get_gpu_ids, task.worker.mode = list, 0
    assert process_in_ray_without_gpu() is None, "the driver"


def test_hidden_gpus_are_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices.warn_of_hidden_gpus.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_device("auto") == torch.device("cpu")
    assert "older Ray hides the GPUs" in caplog.text
