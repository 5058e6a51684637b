"""The whole command: on a healthy world, on one with every file wrong, in a broken environment, and misused."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import REPOSITORY, Site, context
from tiny_sizes import TINY_AGENT, TINY_HIDDEN_LENGTH, TINY_HIDDEN_SIZE, TINY_PLANNER

from navsim_recogdrive.doctor import __main__ as command
from navsim_recogdrive.doctor.findings import Finding, as_json, as_text, exit_status
from navsim_recogdrive.doctor.registry import CHECKS, Check, diagnose

_OVERRIDES = [one for one in TINY_AGENT if one.startswith("agent.")]
_OCCUPANCY_MAPS = {1: 51, 2: 41}


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    status = command.main(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def write_cache(root: Path, vlm: Path) -> None:
    """Two scenes of the tiny VLM, without having run it."""
    from navsim_recogdrive.cache.hidden_state import HiddenState
    from navsim_recogdrive.cache.hidden_state_features import HiddenStateFeatures
    from navsim_recogdrive.cache.identity import claim
    from navsim_recogdrive.cache.scene_key import SceneKey
    from navsim_recogdrive.policy.backbones import SharedBackbone
    from navsim_recogdrive.policy.configuration import VLMConfig
    from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT

    config = VLMConfig(path=str(vlm), hidden_length=TINY_HIDDEN_LENGTH, dtype="float32")
    identity = SharedBackbone(config).identity()
    claim(root, identity)
    rows = torch.randn(TINY_HIDDEN_LENGTH, TINY_HIDDEN_SIZE).bfloat16()
    for token in ("one", "two"):
        folder = root / "log" / token
        folder.mkdir(parents=True)
        state = HiddenStateFeatures(
            scene_key=SceneKey.wrap(token.encode().ljust(16)),
            hidden_state=HiddenState.wrap(rows, 1, "bf16", identity.origin),
        )
        for name in HIDDEN_STATE_LAYOUT.files:
            with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
                pickle.dump(state if name == HIDDEN_STATE_LAYOUT.hidden_state else {"value": 1}, file)


def write_metric_cache(root: Path, major: int) -> None:
    """As many occupancy maps, and the attributes, that tell whose a metric cache is."""
    names = ["ego_state", "trajectory", "centerline", "route_lane_ids", "drivable_area_map"]
    names += ["scene_type", "human_trajectory", "past_human_trajectory", "map_parameters"] if major == 2 else []
    maps = SimpleNamespace(_occupancy_maps=[None] * _OCCUPANCY_MAPS[major])
    cache = SimpleNamespace(observation=maps, **dict.fromkeys(names))
    file = root / "log" / "unknown" / "token" / "metric_cache.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.compress(pickle.dumps(cache), preset=0))
    (root / "metadata").mkdir()
    (root / "metadata" / "nodes.csv").write_text(f"file_name\n{file}\n")


def write_checkpoint(path: Path, **planner: Any) -> None:
    from navsim_recogdrive.planner.configuration import PlannerConfig
    from navsim_recogdrive.planner.planner import DiffusionPlanner

    weights = DiffusionPlanner(PlannerConfig(**{**TINY_PLANNER, **planner})).state_dict()
    torch.save({"state_dict": {f"agent.action_head.{name}": value for name, value in weights.items()}}, path)


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world with NAVSIM's environment variables set to it."""
    for name, folder in (
        ("OPENSCENE_DATA_ROOT", tiny_world),
        ("NUPLAN_MAPS_ROOT", tiny_world / "maps"),
        ("NAVSIM_EXP_ROOT", tmp_path / "exp"),
    ):
        monkeypatch.setenv(name, str(folder))
    for name in ("VLM_PATH", "CHECKPOINT", "CACHE_PATH", "METRIC_CACHE_PATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.navsim
def test_a_healthy_world_has_no_errors(
    world: Path, tiny_vlm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_recogdrive.doctor.context import Context
    from navsim_recogdrive.doctor.request import Request

    navsim = Context(Request(environment=os.environ)).navsim
    assert navsim is not None
    write_cache(world / "cache", tiny_vlm)
    write_metric_cache(world / "metrics", navsim.major)
    write_checkpoint(world / "planner.ckpt")
    monkeypatch.setenv("METRIC_CACHE_PATH", str(world / "metrics"))  # the others as options
    status, found = report(
        capsys,
        *("--stage", "evaluate", "--split", "test", "--vlm", str(tiny_vlm)),
        *("--checkpoint", str(world / "planner.ckpt"), "--cache", str(world / "cache"), *_OVERRIDES),
    )
    by_check = {one["check"]: one for one in found["findings"]}
    assert not [one for one in found["findings"] if one["status"] == "error"]
    assert (status, found["errors"], found["exit_status"], found["schema"]) == (0, 0, 0, 1)
    assert found["request"]["split"] == "test"
    assert f"NAVSIM v{navsim.major}" in by_check["navsim.version"]["found"]
    assert "2 whole scenes in 1 of 1 logs" in by_check["cache.features"]["found"]
    assert "1 scenes, made by this version" in by_check["cache.metrics"]["found"]
    assert "fits agent=recogdrive_2b" in by_check["checkpoint.planner"]["found"]
    for check in ("data.images", "data.maps", "vlm.folder", "hydra.registration", "packages.versions"):
        assert by_check[check]["status"] == "ok", by_check[check]


@pytest.mark.navsim
def test_every_wrong_file_is_a_finding(world: Path, tiny_vlm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from navsim_recogdrive.doctor.context import Context
    from navsim_recogdrive.doctor.request import Request

    navsim = Context(Request(environment=os.environ)).navsim
    assert navsim is not None
    write_cache(world / "cache", tiny_vlm)
    with (world / "cache" / "log" / "one" / "recogdrive_hidden_state.gz").open("r+b") as file:
        file.truncate(5000)
    write_metric_cache(world / "metrics", 3 - navsim.major)
    write_checkpoint(world / "planner.ckpt", num_layers=4, method="flow")
    vlm = world / "vlm"
    shutil.copytree(tiny_vlm, vlm)
    with (vlm / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 100)
    status, found = report(
        capsys,
        *("--stage", "rl", "--split", "trainval", "--vlm", str(vlm), "--cache", str(world / "cache")),
        *("--metric-cache", str(world / "metrics"), "--checkpoint", str(world / "planner.ckpt"), *_OVERRIDES),
    )
    errors = {one["check"]: one for one in found["findings"] if one["status"] == "error"}
    assert status == found["exit_status"] == 1
    assert set(errors) == {"vlm.folder", "checkpoint.planner", "cache.features", "cache.metrics"}
    assert "is truncated or damaged" in errors["vlm.folder"]["found"]
    assert "its num_layers is 4, the agent's 2" in errors["checkpoint.planner"]["found"]
    assert "agent.planner.method=flow" in errors["checkpoint.planner"]["fix"]
    assert "1 files in the 1 logs looked at must not be used" in errors["cache.features"]["found"]
    assert "does not fit the installed NAVSIM" in errors["cache.metrics"]["found"]
    assert all(one["fix"] for one in errors.values())


def test_it_starts_where_every_package_is_broken(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    for name in ("numpy", "torch", "transformers", "hydra", "omegaconf", "pandas", "packaging", "yaml"):
        site.module(name, f"raise ImportError('{name} is broken')")
    root = site.navsim()
    (root / "__init__.py").write_text("raise RuntimeError('navsim is broken')")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(site.folder), str(REPOSITORY)])}
    done = subprocess.run(
        [sys.executable, "-m", "navsim_recogdrive.doctor", "--json", "--stage", "train"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    found = {one["found"] for one in json.loads(done.stdout)["findings"]}
    for name in ("numpy", "torch", "transformers", "hydra", "pandas"):
        assert any(f"{name} is installed and does not import: ImportError: " in one for one in found), (name, found)
    assert any("does not import: RuntimeError: navsim is broken" in one for one in found)
    assert not any("this check itself failed" in one for one in found)


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport navsim_recogdrive.doctor.__main__\n"
        "foreign = {name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(foreign))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.strip() == "['navsim_recogdrive']"


@pytest.mark.parametrize(
    "arguments", [["--stage", "drive"], ["train_test_split=navtest"], ["--time-limit", "0"], ["--unknown"]]
)
def test_wrong_usage_is_told_apart(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_options_come_before_overrides_before_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "diagnose", lambda _: [])
    for name in ("VLM_PATH", "CHECKPOINT", "CACHE_PATH", "METRIC_CACHE_PATH"):
        monkeypatch.setenv(name, f"of/{name}")
    _, found = report(capsys)
    assert found["request"] == {
        "stage": None,
        "agent": "recogdrive_2b",
        "overrides": [],
        "vlm": "of/VLM_PATH",
        "checkpoint": "of/CHECKPOINT",
        "cache": "of/CACHE_PATH",
        "metric_cache": "of/METRIC_CACHE_PATH",
        "split": None,
    }
    overrides = ["agent.vlm.path='a/vlm'", "agent.hidden_state_cache=a/cache"]
    _, found = report(capsys, "--stage", "evaluate", *overrides)
    assert [found["request"][name] for name in ("vlm", "cache", "split")] == ["a/vlm", "a/cache", "navtest"]
    _, found = report(capsys, "--vlm", "b/vlm", "--cache", "b/cache", "--stage", "cache", *overrides)
    assert [found["request"][name] for name in ("vlm", "cache", "split")] == ["b/vlm", "b/cache", "navtrain"]


def test_a_check_that_fails_is_a_finding() -> None:
    def fail(_: Any) -> list[Finding]:
        raise OSError("stale file handle")

    (found,) = diagnose(context(), [Check("data", fail)])
    assert (found.check, found.status) == ("data", "error")
    assert "this check itself failed (OSError: stale file handle)" in found.found


def test_stages_choose_checks() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    noted: list[str] = []
    noting = [Check(one.name, lambda _, name=one.name: noted.append(name) or [], one.stages) for one in CHECKS]
    diagnose(context(stage="pretraining"), noting)
    assert "vlm" in noted
    assert not {"hydra", "metric_cache", "checkpoint", "machine.disk"} & set(noted)
    noted.clear()
    diagnose(context(), noting)
    assert noted == names


def test_report_for_people_and_programs() -> None:
    findings = [
        Finding("a.b", "ok", "fine"),
        Finding("c.d", "error", "wrong " * 30, "python -m something --with /a/long-path-name/that/is/not-broken"),
    ]
    text = as_text(findings, 60)
    assert text.startswith("ok      a.b: fine\nerror   c.d: wrong")
    assert "/a/long-path-name/that/is/not-broken" in text
    assert text.endswith("1 errors, 0 warnings, 1 ok\n")
    assert max(map(len, text.splitlines())) <= 60
    assert "\033[31merror" in as_text(findings, 60, colour=True)
    content = json.loads(as_json(findings, {"stage": None}, "0.1.0"))
    assert list(content) == ["schema", "version", "request", "errors", "warnings", "exit_status", "findings"]
    assert content["findings"][0] == {"check": "a.b", "status": "ok", "found": "fine", "fix": ""}
    assert (exit_status(findings), exit_status(findings[:1])) == (1, 0)
