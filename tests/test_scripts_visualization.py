"""The scripts that draw scenes: which command they run, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_runs import command, run, script_environment

DRAW = "visualization/draw_scenes.sh"
MODULE = "navsim_recogdrive.agents.draw_scenes"


@pytest.mark.navsim
def test_scenes_of_navsim(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best-epoch=3.ckpt"
    checkpoint.touch()
    metrics = tmp_path / "metric cache"
    settings = {"CHECKPOINT": str(checkpoint), "METRIC_CACHE_PATH": str(metrics), "OUTPUT": "out"}
    words = command(DRAW, "--token", "abc", "--samples", "16", environment=script_environment(**settings))
    assert words == [
        *("python", "-m", MODULE, "pictures", "out", "--checkpoint", f"ReCogDrive={checkpoint}"),
        *("--metric-cache", str(metrics), "--token", "abc", "--samples", "16"),
    ]
    done = run(DRAW, "--token", "abc", environment=script_environment(**settings))
    assert done.returncode == 2
    assert f"METRIC_CACHE_PATH={metrics} is not a folder" in done.stderr


@pytest.mark.parametrize("kind", ["denoising", "training"])
def test_films_of_the_world(kind: str) -> None:
    environment = script_environment(WORLD="/the world", OPENSCENE_DATA_ROOT="")
    words = command(f"visualization/film_{kind}.sh", "--scenes", "2", environment=environment)
    assert words == [
        *("python", "-m", "navsim_recogdrive.viz", kind, f"outputs/{kind}", "--world", "/the world", "--scenes", "2")
    ]


@pytest.mark.parametrize("spelled", [["--checkpoint", "epoch 1=a.ckpt"], ["--checkpoint=epoch 1=a.ckpt"]])
def test_named_checkpoints_take_the_place_of_the_variable(spelled: list[str], tmp_path: Path) -> None:
    """A film of training would begin with the finished planner."""
    checkpoint = tmp_path / "finished.ckpt"
    checkpoint.touch()
    environment = script_environment(WORLD="/w", CHECKPOINT=str(checkpoint))
    words = command("visualization/film_training.sh", "--scenes", "2", *spelled, environment=environment)
    expected = ["python", "-m", "navsim_recogdrive.viz", "training", "outputs/training", "--world", "/w"]
    assert words == [*expected, "--scenes", "2", *spelled]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"KIND": "song"}, "KIND must be pictures, denoising or training, found song"),
        ({"CHECKPOINT": "/none.ckpt"}, "CHECKPOINT=/none.ckpt is not a file"),
        ({"OPENSCENE_DATA_ROOT": ""}, "OPENSCENE_DATA_ROOT is not set"),
        ({"WORLD": "/w", "METRIC_CACHE_PATH": "/m"}, "scenes of WORLD are scored by the world"),
    ],
)
def test_refusals(settings: dict[str, str], message: str) -> None:
    done = run(DRAW, "--dry-run", environment=script_environment(**settings))
    assert done.returncode == 2
    assert message in done.stderr


def test_the_options_are_the_commands_own() -> None:
    """What a script does not know it passes on, so that the command says what is wrong."""
    done = run(DRAW, "--loudly", environment=script_environment(WORLD="/w"))
    assert done.returncode == 2
    assert "unrecognized arguments: --loudly" in done.stderr
