"""``python -m navsim_recogdrive.plan`` from an image: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from copying_vlm import ANSWER_POSES, answer_text, write_copying_vlm
from PIL import Image
from tiny_sizes import TINY_HIDDEN_LENGTH, TINY_TILE

from navsim_recogdrive.plan.command import main
from navsim_recogdrive.policy.configuration import SamplingConfig, VLMConfig
from navsim_recogdrive.policy.observation_input import make_observation
from navsim_recogdrive.policy.policy import ReCogDrivePolicy

REPOSITORY = Path(__file__).parents[2]
HISTORY = [[-6.0, -0.5, -0.2], [-4.0, -0.2, -0.1], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
NUMBERS = [str(number) for pose in HISTORY for number in pose]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLM_PATH", "CHECKPOINT", "OPENSCENE_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "front.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (360, 640, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def models(tiny_vlm: Path, planner_checkpoint: Path) -> list[str]:
    return ["--vlm", str(tiny_vlm), "--checkpoint", str(planner_checkpoint), "--device", "cpu"]


def test_plan_of_an_image(
    image: Path,
    models: list[str],
    tiny_vlm: Path,
    planner_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outputs = [tmp_path / "made" / "plan.json", tmp_path / "plan.png"]
    words = ["--image", str(image), "--history", *NUMBERS, "--status", "4", "0", "0.5", "-0.1", "--command", "right"]
    status = main([*words, *models, "--samples", "5", "--seed", "3", "--output", *map(str, outputs)])
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    written = json.loads(outputs[0].read_text())
    plans = np.array(written["plans"])

    config = VLMConfig(dtype="float32", hidden_length=TINY_HIDDEN_LENGTH)
    policy = ReCogDrivePolicy.from_pretrained(
        tiny_vlm, planner_checkpoint, device="cpu", vlm_config=config, sampling=SamplingConfig(seed=3)
    )
    alone = policy.plan(image, HISTORY, [4.0, 0.0, 0.5, -0.1], "right").poses
    np.testing.assert_allclose(plans[0], alone, atol=1e-5)
    observation = make_observation(image, HISTORY, [4.0, 0.0, 0.5, -0.1], "right")
    np.testing.assert_allclose(plans, [plan.poses for plan in policy.plan_samples(observation, 5)], atol=1e-6)
    assert not np.allclose(plans[0], plans[1], atol=0.01)

    assert printed.out.startswith("front.png: command right, 4.0 m/s\n")
    rows = [line.split() for line in printed.out.splitlines() if line.strip()[:1].isdigit()]
    table = np.array([row for row in rows if len(row) == 4], dtype=float)
    np.testing.assert_allclose(table[:, 0], written["times_s"])
    np.testing.assert_allclose(table[:, 1:], plans[0], atol=0.0051)
    ends = np.array([row for row in rows if len(row) == 3], dtype=float)
    np.testing.assert_allclose(ends[:, 1:], plans[:, -1, :2], atol=0.0051)

    assert written["input"]["history"] == np.float32(HISTORY).tolist()
    assert written["settings"]["seed"] == 3
    assert (written["scores"], written["human"]) == ({}, None)
    with Image.open(outputs[1]) as picture:
        assert picture.size == (1280 + 720, 720)


def test_an_image_alone(image: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--image", str(image), *models]) == 0
    assert "history: not given, constant velocity of 5 m/s assumed" in capsys.readouterr().out
    assert main(["--image", str(image), *models, "--speed", "7", "--deterministic"]) == 0
    first = capsys.readouterr().out
    assert "constant velocity of 7 m/s assumed" in first
    assert main(["--image", str(image), *models, "--status", "7", "0", "--deterministic"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("suffix", [".json", ".npy", ".csv", ".txt"])
def test_history_from_a_file(
    suffix: str, image: Path, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"history{suffix}"
    if suffix == ".npy":
        np.save(path, HISTORY)
    elif suffix == ".json":
        path.write_text(json.dumps({"history": HISTORY}))
    else:
        join = ", " if suffix == ".csv" else " "
        path.write_text("\n".join(join.join(map(str, pose)) for pose in HISTORY) + "\n")
    assert main(["--image", str(image), "--history", str(path), *models]) == 0
    from_file = capsys.readouterr().out
    assert "velocity and acceleration: not given" in from_file
    assert main(["--image", str(image), "--history", *NUMBERS, *models]) == 0
    assert capsys.readouterr().out == from_file


def test_numbers_as_numpy_prints_them(image: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse takes -1e-3 and -9. for options unless it is told what a number is."""
    odd = ["-9.", "-1e-3", "-1E-04", "-6.", "-.001", "0.", "-3.", "-1.5e-3", "0", "0", "0", "-0."]
    plain = ["-9", "-0.001", "-0.0001", "-6", "-0.001", "0", "-3", "-0.0015", "0", "0", "0", "0"]
    assert main(["--image", str(image), "--history", *odd, "--status", "6", "-1e-3", "-.25", "-1.", *models]) == 0
    printed = capsys.readouterr().out
    assert main(["--image", str(image), "--history", *plain, "--status", "6", "-0.001", "-0.25", "-1", *models]) == 0
    assert capsys.readouterr().out == printed


def test_odd_units_are_warned_of_in_one_line(
    image: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--image", str(image), "--history", *NUMBERS, "--status", "14.4", "0", *models]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the velocity says 14.4 m/s")
    assert line.endswith("is this km/h?")


def test_settings_that_the_checkpoint_does_not_say(
    image: Path, tiny_vlm: Path, silent_checkpoint: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--image", str(image), *models]) == 0
    remembered = capsys.readouterr().out
    silent = ["--vlm", str(tiny_vlm), "--checkpoint", str(silent_checkpoint), "--device", "cpu"]
    options = ["--dtype", "float32", "--hidden-length", str(TINY_HIDDEN_LENGTH)]
    assert main(["--image", str(image), *silent, *options]) == 0
    assert capsys.readouterr().out == remembered
    assert main(["--image", str(image), *models, "--max-tiles", "4"]) == 2
    assert "max_tiles differs" in capsys.readouterr().err


def test_three_cameras(
    image: Path, tiny_vlm: Path, silent_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--vlm", str(tiny_vlm), "--checkpoint", str(silent_checkpoint), "--device", "cpu", "--cam-type", "multi"]
    assert main(["--image", str(image), *models]) == 2
    assert "front_left_image is None" in capsys.readouterr().err
    sides = ["--front-left-image", str(image), "--front-right-image", str(image)]
    assert main(["--image", str(image), *sides, *models, "--dtype", "float32"]) == 0


def test_the_vlm_alone(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, profile = write_copying_vlm(tmp_path / "copier", answer_text(), TINY_TILE)
    words = ["--image", str(image), "--text", "--vlm", str(folder), "--prompt-profile", str(profile), "--device", "cpu"]
    assert main([*words, "--dtype", "float32", "--output", str(tmp_path / "plan.json")]) == 0
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    np.testing.assert_allclose(plan, ANSWER_POSES, atol=1e-6)
    assert "sample" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to plan for"),
        (["--image", "a.png", "--token", "abc"], "say what to plan for"),
        (["--image", "a.png", "--frame", "4"], "--frame needs --token or --log"),
        (["--token", "abc", "--speed", "4", "--history", "a"], "--history, --speed cannot be given with a scene"),
        (["--token", "abc", "--speed", "0"], "--speed cannot be given with a scene"),
        (["--token", "abc", "--frame", "4"], "--frame goes with --log"),
        (["--token", "abc"], "Set OPENSCENE_DATA_ROOT"),
        (["--image", "a.png", "--status", "1"], "--status takes VX VY"),
        (["--image", "a.png", "--status", "1", "0", "--speed", "1"], "--status or --speed, not both"),
        (["--image", "a.png"], "which VLM?"),
        (["--image", "a.png", "--vlm", "v"], "which planner?"),
        (["--image", "a.png", "--vlm", "v", "--text", "--samples", "4"], "--samples cannot act with --text"),
        (["--image", "a.png", "--vlm", "v", "--text", "--seed", "0"], "--seed cannot act with --text"),
        (["--image", "a.png", "--vlm", "v", "--checkpoint", "c", "--output", "plan.pdf"], "must end in .json"),
        (["--image", "a.png", "--samples", "0"], "whole number from 1 on"),
        (["--image", "a.png", "--command", "back"], "invalid choice"),
    ],
)
def test_wrong_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "nowhere.png"], "no image at nowhere.png"),
        (["--image", "IMAGE", "--history", "nowhere.json"], "no file of poses at nowhere.json"),
        (["--image", "IMAGE", "--history", "IMAGE"], "holds no poses"),
        (["--image", "IMAGE", "--history", "1", "2", "3"], "takes a file or 12 numbers .*, found 3"),
        (["--image", "IMAGE", "--history", "a", "b"], "takes a file or 12 numbers"),
        (["--image", "IMAGE", "--checkpoint", "nowhere.ckpt"], "no planner checkpoint at nowhere.ckpt"),
        (["--image", "IMAGE", "--vlm", "."], "config.json"),
    ],
)
def test_errors_are_one_line(
    words: list[str], message: str, image: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*models, *(str(image) if word == "IMAGE" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom navsim_recogdrive.plan.command import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'navsim'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m navsim_recogdrive.plan" in done.stdout
