"""Every benchmark runs to its end at its smallest size; of the VLM's, what a GPU makes different is tried here too."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_sizes import TINY_HIDDEN_SIZE, TINY_PLANNER
from torch import Tensor

from navsim_recogdrive.planner import PlannerConfig

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("planner", ["--quick"]),
        ("vlm", ["--shape", "tiny", "--repeats", "1", "--batches", "1"]),
        ("vlm_text", ["--shape", "tiny", "--repeats", "1", "--batches", "2", "--tokens", "5"]),
        ("cache", ["--quick"]),
        ("image_tiles", ["--repeats", "1", "--tile-size", "56"]),
    ],
)
def test_benchmark_runs(name: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / f"{name}.py"), *arguments, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)


def load(name: str) -> ModuleType:
    """A benchmark as a module."""
    folder = REPOSITORY / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def test_rl_step_benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rl_step = load("rl_step")
    monkeypatch.setattr(rl_step.PlannerConfig, "small", lambda **_: PlannerConfig(**TINY_PLANNER))
    hidden = ["--rows", "8", "--hidden-size", str(TINY_HIDDEN_SIZE)]
    sizes = ["--scenes", "2", "--group-size", "2", *hidden, "--repeats", "1"]
    arguments = [*sizes, "--baseline-scenes", "1"]
    monkeypatch.setattr("sys.argv", ["rl_step.py", *arguments, "--memory-groups"])
    rl_step.main()
    lines = {line[:34].strip(): line[34:].split() for line in capsys.readouterr().out.splitlines()}
    assert len(lines["RL step"]) == 4
    assert all(float(number) > 0 for number in lines["RL step"])
    for way in rl_step.WAYS:
        monkeypatch.setattr("sys.argv", ["rl_step.py", *arguments, "--peak", way])
        rl_step.main()
        assert float(capsys.readouterr().out) >= 0


@pytest.fixture(scope="module")
def vlm() -> ModuleType:
    return load("vlm")


OPTIONS = Namespace(shape="tiny", device="cpu", dtype="float32", attention="sdpa", batches=[1], threads=1, repeats=1)


@pytest.fixture(scope="module")
def backbone(vlm: ModuleType) -> Any:
    """Prepares scenes as on a GPU: the tiles are a tensor."""
    backbone = vlm.build_backbone(OPTIONS)
    backbone.prepare = lambda observation: backbone.preparation.prepare(observation, torch.device("cpu"))
    return backbone


def test_vlm_rows_are_compared_on_tiles_that_a_gpu_cut(
    vlm: ModuleType, backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(backbone.prepare(vlm.draw_scene(0)).tiles, Tensor)
    head = torch.ones(1, backbone.hidden_size)
    vlm.check(backbone, head, OPTIONS)
    row = vlm.compare(backbone, head, 1, OPTIONS)
    assert row["peak_memory_mb"] is None or row["peak_memory_mb"] > 100
    assert min(row[name] for name in ("published_ms", "ours_ms", "images_per_second_prepared_in_threads")) > 0
    monkeypatch.setattr(vlm, "as_published", lambda backbone, head, inputs: 1.01 * backbone.content_rows(inputs))
    with pytest.raises(SystemExit, match="differ by 0.0099 of the rows' norm, expected 0.0001"):
        vlm.check(backbone, head, OPTIONS)


@pytest.mark.parametrize("batches", [1, 3, 20])
def test_vlm_images_per_second_are_no_more_than_can_be_prepared(vlm: ModuleType, batches: int) -> None:
    class Slow:
        def prepare(self, observation: object) -> object:
            time.sleep(0.05)
            return observation

        def hidden_states(self, inputs: object) -> None:
            time.sleep(0.001)

    rate = vlm.throughput(Slow(), 1, batches, Namespace(threads=2, device="cpu"))
    assert rate <= 40  # two threads, 50 ms each
    assert rate > (10 if batches == 20 else 0)


@pytest.mark.parametrize("wrong", [False, True])
def test_vlm_whole_path_through_a_graph_of_the_planner(
    vlm: ModuleType, backbone: Any, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the graph, which no CPU has: it plans anew from the tensors that it was captured with."""
    captured, replayed, read = [], [], set()

    def graphed(work: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
        captured.append(1)

        def replay() -> Tensor:
            replayed.append(1)
            return work() + 1000 * wrong

        return replay

    condition = vlm.DiffusionPlanner.condition

    def spy(planner: object, hidden: Tensor, *others: Tensor) -> object:
        read.add(hidden.data_ptr())
        return condition(planner, hidden, *others)

    def run(work: Callable[[], object], options: Namespace) -> float:
        if captured:  # the parts before are the other test's
            work()
        return 0.001

    for name, stand_in in {"graphed": graphed, "median_of": run}.items():
        monkeypatch.setattr(vlm, name, stand_in)
    monkeypatch.setattr(vlm.DiffusionPlanner, "condition", spy)
    found = dict(vlm.parts(backbone, OPTIONS))
    graph = [found["planner in a CUDA graph"], found["decoded image to trajectory, planner in a CUDA graph"]]
    assert len(read) == 1, "a graph reads the memory that it was captured with"
    if wrong:
        assert all("differs by" in text for text in graph)
        assert len(replayed) == 1
    else:
        assert graph == [1.0, 1.0]
        assert len(replayed) == 3  # compared, alone, and behind the VLM


def test_vlm_prints_what_it_measured_before_it_fails(
    vlm: ModuleType, backbone: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def compare(backbone: object, head: object, batch: int, options: object) -> dict[str, float]:
        assert done == ["checked"]
        if batch == 2:
            raise RuntimeError("out of memory")
        return dict.fromkeys(
            ["published_ms", "ours_ms", "ratio", "images_per_second", "images_per_second_prepared_in_threads"], 7.25
        ) | {"peak_memory_mb": 77}

    monkeypatch.setattr(vlm, "build_backbone", lambda options: backbone)
    monkeypatch.setattr(vlm, "check", lambda *arguments: done.append("checked"))
    monkeypatch.setattr(vlm, "compare", compare)
    with pytest.raises(RuntimeError, match="out of memory"):
        vlm.main(["--shape", "tiny", "--batches", "1", "2"])
    printed = capsys.readouterr().out
    assert "2785 tokens" in printed
    assert " 7.25" in printed
    assert " 77 " in printed


def test_vlm_refuses_a_kernel_without_float32(vlm: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        vlm.main(["--attention", "flash_attention_2"])
    assert "no kernel for float32: add --dtype bfloat16" in capsys.readouterr().err
