"""Steps in a process of their own: what crashes, hangs, prints or raises there is told apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import REPOSITORY, Site

from navsim_recogdrive.doctor.isolated.runner import StepResult, run_steps

_LONG_S = 60.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site", {})


def run(site: Site, steps: Sequence[str], limit_s: float = _LONG_S, **parameters: Any) -> dict[str, StepResult]:
    return run_steps(steps, parameters, os.environ, [str(REPOSITORY), str(site.folder)], limit_s)


def test_one_crash_does_not_hide_the_others(site: Site) -> None:
    site.module("good", "__version__ = '1.2'\nprint('on standard output')\nimport os\nos.write(1, b'and below it')")
    site.module("crashing", "import os, sys\nsys.stderr.write('last words\\n')\nsys.stderr.flush()\nos.abort()")
    site.module("exiting", "import os\nos._exit(3)")
    site.module("quitting", "raise SystemExit('not here')")
    site.module("raising", "raise ImportError('libGL.so.1: cannot open shared object file')")
    found = run(site, [f"import {name}" for name in ("good", "crashing", "raising", "exiting", "quitting")])
    assert found["import good"].value["version"] == "1.2"
    assert found["import good"].error == ""
    assert found["import crashing"].error.startswith("the process ended by signal 6 (Aborted): ")
    assert found["import crashing"].error.endswith("last words")
    assert found["import raising"].error == "ImportError: libGL.so.1: cannot open shared object file"
    assert found["import exiting"].error == "the process ended with status 3"
    assert found["import quitting"].error == "SystemExit: not here"


def test_a_hang_is_given_up_and_the_rest_still_runs(site: Site) -> None:
    site.module("hanging", "import time\ntime.sleep(600)")
    site.module("good")
    found = run(site, ["import hanging", "import good"], limit_s=5.0)
    assert found["import hanging"].error == "TimeoutError: no answer after 5 s"
    assert found["import good"].error == ""


def test_a_process_that_cannot_start_blames_every_step(site: Site) -> None:
    found = run_steps(["import os", "import json"], {}, os.environ | {"PYTHONHOME": str(site.folder)}, [], _LONG_S)
    assert [one.error for one in found.values()] == ["the process for this step did not start"] * 2


def test_torch_tells_of_gpus(site: Site) -> None:
    site.module(
        "torch",
        """
class version: cuda = "12.8"
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    mem_get_info = staticmethod(lambda index: (10 + index, 80))
    @staticmethod
    def get_device_properties(index):
        class properties: name, total_memory, major = f"GPU {index}", 80, 7 + index
        return properties
""",
    )
    found = run(site, ["import torch"])["import torch"].value
    assert found["cuda"] == "12.8"
    assert found["devices"] == [
        {"name": "GPU 0", "total_bytes": 80, "free_bytes": 10, "bf16": False},
        {"name": "GPU 1", "total_bytes": 80, "free_bytes": 11, "bf16": True},
    ]


def test_hydra_finds_the_config_that_counts(tmp_path: Path, site: Site) -> None:
    training = tmp_path / "training"
    parameters = {"agent": "recogdrive_2b", "training_config": str(training)}
    training.mkdir()
    overrides = ["agent/planner=dit_large", "agent.cam_type=multi", "+dataloader.params.batch_size=4"]
    (found,) = run(site, ["hydra"], overrides=[*overrides[:2], overrides[2][1:]], **parameters).values()
    assert found.error == ""
    assert [source["provider"] for source in found.value["sources"]] == ["navsim-recogdrive"]
    assert found.value["agent"]["planner"]["num_heads"] == 32
    assert found.value["agent"]["cam_type"] == "multi"
    assert found.value["dataloader"] == {"batch_size": 4, "num_workers": 4, "prefetch_factor": 2}
    (training / "agent").mkdir()
    (training / "agent" / "recogdrive_2b.yaml").write_text("somebody: else\n")
    (found,) = run(site, ["hydra"], overrides=[], **parameters).values()
    assert [source["provider"] for source in found.value["sources"]] == ["main", "navsim-recogdrive"]
    assert found.value["agent"] == {"somebody": "else"}


def test_settings_are_checked_as_the_agent_does(site: Site) -> None:
    parameters = {"agent": "recogdrive_8b", "training_config": None}
    found = run(site, ["hydra", "settings"], overrides=["agent.vlm.training=lora"], **parameters)
    assert "agent.vlm.training=lora needs agent.cache_hidden_state=false" in found["settings"].error
    found = run(site, ["hydra", "settings"], overrides=[], **parameters)
    assert found["settings"].error == ""
    assert found["settings"].value["planner"]["hidden_state_size"] == 3584
    assert found["settings"].value["planner_parameters"] == pytest.approx(34e6, rel=0.05)
    assert found["settings"].value["scenes"]["navtest"] == 12_146
