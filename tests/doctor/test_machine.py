"""GPUs, memory by arithmetic, cores, shared memory and disk."""

from __future__ import annotations

import shutil
import stat
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from fakes import context, hydra_answer, only, problems

from navsim_recogdrive.doctor.checks import disk, gpu, processors
from navsim_recogdrive.doctor.memory import VLM_2B, VLM_8B, PlannerSize, needed

_Usage = namedtuple("_Usage", "total used free")
LARGE = {"name": "H", "total_bytes": 141e9, "free_bytes": 140e9, "bf16": True}
SMALL = {"name": "S", "total_bytes": 12e9, "free_bytes": 11.8e9, "bf16": True}


def steps(
    *devices: dict[str, Any], cuda: str | None = "12.8", batch: int | None = None, **agent: Any
) -> dict[str, Any]:
    answer = hydra_answer(**agent)
    answer["dataloader"]["batch_size"] = batch
    return {"import torch": {"version": "2.13.0", "cuda": cuda, "devices": list(devices)}, "hydra": answer}


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{says}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_gpus_are_named_and_large_enough() -> None:
    found = list(gpu.check(context(None, steps(LARGE, LARGE), stage="cache")))
    assert not problems(found)
    assert "2 GPUs, torch 2.13.0 for CUDA 12.8: H (141 GB), H (141 GB)" in found[0].found
    assert "by arithmetic, not measured" in found[1].found


def test_old_gpus_lack_bfloat16() -> None:
    (found,) = problems(gpu.check(context(None, steps({**LARGE, "bf16": False}))))
    assert "bfloat16" in found.found


@pytest.mark.parametrize(
    ("says", "cuda", "expected"),
    [
        ("echo NVIDIA H200", None, "the driver shows NVIDIA H200, but torch 2.13.0 is built for the CPU"),
        ("echo NVIDIA H200", "13.0", "the driver may be too old"),
        ("exit 9", "13.0", "no GPU: everything runs on the CPU"),
    ],
)
def test_no_gpu_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, cuda: str | None, expected: str
) -> None:
    driver(tmp_path, monkeypatch, says)
    (found,) = problems(gpu.check(context(None, steps(cuda=cuda))))
    assert found.status == "warning"
    assert expected in found.found


def test_hidden_gpus_are_told() -> None:
    (found,) = problems(gpu.check(context(None, steps(), {"CUDA_VISIBLE_DEVICES": ""})))
    assert found.fix == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("stage", "agent", "status"),
    [
        ("cache", {}, "ok"),
        ("cache", {"planner": {"hidden_state_size": 3584}}, "error"),
        ("train", {"planner": {"hidden_state_size": 3584}}, "ok"),
        ("evaluate", {"planner": {"hidden_state_size": 3584}, "hidden_state_cache": "/cache"}, "ok"),
        ("train", {"cache_hidden_state": False, "vlm": {"training": "full"}}, "error"),
        ("cache", {"cache_hidden_state": False, "planner": {"hidden_state_size": 3584}}, "ok"),
    ],
)
def test_memory_against_agent_and_stage(stage: str, agent: dict[str, Any], status: str) -> None:
    found = list(gpu.check(context(None, steps(LARGE, SMALL, **agent), stage=stage)))[-1]
    assert (found.check, found.status) == ("machine.gpu_memory", status)
    if status == "error":
        assert "S has 12 GB" in found.found
        assert found.fix


def test_memory_that_others_use() -> None:
    (found,) = problems(gpu.check(context(None, steps({**LARGE, "free_bytes": 2e9}), stage="cache")))
    assert (found.status, "2 GB are free" in found.found) == ("warning", True)


def test_batch_size_counts() -> None:
    few, many = (sum(gpu.requirement(context(None, steps(batch=batch)), "train").values()) for batch in (1, 64))
    assert 5 * few < many


def test_arithmetic_of_the_published_models() -> None:
    planner = PlannerSize(34e6, 16, 384, 2800, 1536)
    cache = needed("cache", VLM_2B, None)
    assert cache["VLM"] == pytest.approx(2 * 1.86e9)
    assert sum(needed("cache", VLM_8B, None).values()) == pytest.approx(16.2e9, rel=0.05)
    train = needed("train", None, planner, batch=16)
    assert train["planner, gradients, optimiser"] == 34e6 * 16
    assert train["hidden states and conditions of 16 scenes"] == 16 * 2800 * (1536 * 6 + 2 * 16 * 384 * 4)
    assert sum(needed("rl", None, planner, batch=16).values()) > sum(train.values())
    joint = [
        sum(needed("train", VLM_2B, planner, batch=2, training=training, checkpointing=saving).values())
        for training, saving in (("frozen", False), ("lora", True), ("lora", False), ("full", False))
    ]
    assert joint == sorted(joint)
    assert needed("train", VLM_2B, planner, training="full")["VLM, gradients, optimiser"] == 16 * 1.86e9


@pytest.mark.parametrize(
    ("quota", "setting", "status", "said"),
    [
        ("max 100000", "", "ok", "OMP_NUM_THREADS=not set"),
        ("150000 100000", "", "warning", "is granted 1.5"),
        ("150000 100000", "1", "ok", "OMP_NUM_THREADS=1"),
        ("max 100000", "4096", "warning", "OMP_NUM_THREADS=4096 on"),
        ("max 100000", "many", "error", "must be a number"),
    ],
)
def test_threads_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, setting: str, status: str, said: str
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(processors, "_CGROUP_2", tmp_path / "cpu.max")
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    environment = {"OMP_NUM_THREADS": setting} if setting else {}
    found = only(processors.check(context(environment=environment, stage="cache")))
    assert (found.status, said in found.found) == (status, True), found


def test_older_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_CGROUP_2", tmp_path / "absent")
    monkeypatch.setattr(processors, "_CGROUP_1", tmp_path)
    assert processors.granted_cores() is None
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu.cfs_quota_us").write_text("400000\n")
    assert processors.granted_cores() == 4
    (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    assert processors.granted_cores() is None


@pytest.mark.parametrize(("total", "status"), [(64e6, "warning"), (64e9, "ok")])
def test_shared_memory_of_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: float, status: str
) -> None:
    monkeypatch.setattr(processors, "_SHARED_FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(total, 0, total))
    found = list(processors.check(context(None, steps(), stage="train")))[-1]
    assert (found.check, found.status) == ("machine.shared_memory", status)
    assert "4 workers x 2 batches x 16 scenes x 8.6 MB" in found.found
    assert ("--shm-size=2g" in found.fix) == (status == "warning")


@pytest.mark.parametrize(
    ("mode", "free", "status", "needs"),
    [("bf16", 600e9, "warning", "614 GB"), ("bf16", 700e9, "ok", "614 GB"), ("int8", 600e9, "ok", "383 GB")],
)
def test_disk_against_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, free: float, status: str, needs: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(2 * free, free, free))
    answers = {"hydra": hydra_answer(cache_mode=mode), "settings": {"scenes": {"navtrain": 103_288}}}
    one = context(None, answers, {"NAVSIM_EXP_ROOT": str(tmp_path / "exp")})
    found = only(disk.check(one))
    assert (found.status, needs in found.found) == (status, True), found
    assert ("agent.cache_mode=int8" in found.fix) == (status == "warning")


def test_scenes_that_are_cached_take_no_more_disk(tmp_path: Path) -> None:
    (tmp_path / "_recogdrive").mkdir()
    for token in "abc":
        (tmp_path / "log" / token).mkdir(parents=True)
    answers = {"hydra": hydra_answer(cache_hidden_state=False), "settings": {"scenes": {"navtrain": 5}}}
    found = only(disk.check(context(None, answers, cache=tmp_path, stage="cache")))
    assert "image tiles of 2 scenes of navtrain (3 are there) take about 4.02 MB" in found.found


def test_measured_sizes_of_cached_states() -> None:
    # docs/benchmarks.md: 5.94 and 13.83 MB in bf16, 3.66 and 8.64 MB in int8
    for size, mode, measured in (
        (1536, "bf16", 5.94e6),
        (3584, "bf16", 13.83e6),
        (1536, "int8", 3.66e6),
        (3584, "int8", 8.64e6),
    ):
        answers = {"hydra": hydra_answer(cache_mode=mode, planner={"hidden_state_size": size})}
        assert disk.scene_bytes(context(None, answers)) == pytest.approx(measured, rel=0.02)
