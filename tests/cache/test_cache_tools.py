"""``python -m navsim_recogdrive.cache``, and the conversions behind it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_cache import IDENTITY, cut, dump, rows

from navsim_recogdrive.cache import conversion
from navsim_recogdrive.cache.__main__ import main
from navsim_recogdrive.cache.conversion import leading_equal_rows
from navsim_recogdrive.cache.hidden_state import HiddenState
from navsim_recogdrive.cache.identity import claim, read_identity
from navsim_recogdrive.cache.peek import peek_feature, peek_hidden_state
from navsim_recogdrive.cache.scene_key import SceneKey
from navsim_recogdrive.policy import cache_estimate
from navsim_recogdrive.policy.features import (
    EGO_CACHE,
    HIDDEN_STATE_CACHE,
    HIDDEN_STATE_LAYOUT,
    TOKEN_CACHE,
    TRAJECTORY_CACHE,
)

STATE = f"{HIDDEN_STATE_CACHE}.gz"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Four scenes with an identity."""
    root = tmp_path / "cache"
    claim(root, IDENTITY)
    for index in range(4):
        folder = root / f"log_{index % 2}" / f"{index:016x}"
        state = HiddenState.wrap(rows(index), 9, "bf16", IDENTITY.origin)
        dump(folder / STATE, {"scene_key": SceneKey.wrap(bytes([index] * 16)), "hidden_state": state})
        dump(folder / f"{EGO_CACHE}.gz", {"past_poses": torch.full((4, 3), index), "ego_status": torch.zeros(8)})
        dump(folder / f"{TRAJECTORY_CACHE}.gz", {"trajectory": torch.zeros(8, 3)})
        dump(folder / f"{TOKEN_CACHE}.gz", {"token": folder.name})
        for path in folder.iterdir():
            os.utime(path, (1.6e9, 1.6e9))
    return root


def _inspect(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict]:
    capsys.readouterr()
    status = main(["inspect", str(root), "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def test_inspect(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, content = _inspect(cache, capsys, "--full")
    assert status == 0
    assert content["identity"] == IDENTITY.to_dict()
    assert content["hidden_states"]["scenes"] == 4
    assert content["hidden_states"]["states"] == [{"mode": "bf16", "rows": 900, "features": 64, "count": 4}]
    cut(cache / "log_0" / f"{0:016x}" / STATE)
    status, content = _inspect(cache, capsys)
    assert status == 1
    assert [one["kind"] for one in content["hidden_states"]["findings"]] == ["damaged"]
    assert _inspect(cache, capsys, "--logs", "log_1")[0] == 0
    assert main(["inspect", str(cache)]) == 1
    printed = capsys.readouterr().out
    assert "3 scenes are whole" in printed
    assert "vlm InternVL3-2B, model aaaaaaaaaaaa" in printed


def test_inspect_a_cache_for_evaluation(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = sorted(cache.glob("log_*/*"))
    for scene in scenes[1:]:
        (scene / f"{TRAJECTORY_CACHE}.gz").unlink()
    (scenes[1] / f"{EGO_CACHE}.gz").unlink()
    status, content = _inspect(cache, capsys)
    states = content["hidden_states"]
    assert (status, states["scenes"], states["incomplete"]) == (0, 1, [str(scenes[1])])
    assert states["evaluation_only"] == [str(scene) for scene in scenes[2:]]
    assert main(["inspect", str(cache)]) == 0
    assert "2 lack the expert's trajectory: for evaluation only" in capsys.readouterr().out
    cut(scenes[2] / STATE)
    assert _inspect(cache, capsys)[0] == 1, "evaluation would fail on it"


def test_repair(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = cache / "log_0" / f"{0:016x}" / STATE
    cut(damaged)
    foreign = cache / "log_1" / f"{1:016x}" / STATE
    dump(foreign, {"hidden_state": HiddenState.wrap(rows(), 9, origin=b"another!")})
    os.utime(foreign, (1.6e9, 1.6e9))
    before = sorted(cache.rglob("*"))
    assert main(["repair", str(cache), "--dry-run"]) == 0
    assert f"would remove {damaged}" in capsys.readouterr().out
    assert sorted(cache.rglob("*")) == before
    assert main(["repair", str(cache)]) == 0
    assert sorted({*before} - {*cache.rglob("*")}) == [damaged]
    capsys.readouterr()
    assert main(["inspect", str(cache)]) == 1
    assert "only with repair --foreign" in capsys.readouterr().out
    assert main(["repair", str(cache), "--foreign"]) == 0
    assert sorted({*before} - {*cache.rglob("*")}) == [damaged, foreign]
    assert _inspect(cache, capsys)[0] == 0


def test_files_in_the_root(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished, note = cache / "estimate.1.partial", cache / "README"
    for path in (unfinished, note):
        path.write_bytes(b"x")
        os.utime(path, (1.6e9, 1.6e9))
    status, content = _inspect(cache, capsys)
    assert (status, content["loose"]) == (1, [str(note), str(unfinished)])
    assert main(["inspect", str(cache)]) == 1
    printed = capsys.readouterr().out
    assert f"{note} is no log's folder, and NAVSIM's Dataset fails on it; move it elsewhere" in printed
    assert main(["repair", str(cache)]) == 0
    printed = capsys.readouterr().out
    assert f"removed {unfinished}" in printed
    assert f"{note} is no log's folder" in printed
    assert not unfinished.exists()
    assert note.exists()


def test_convert_between_modes(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("fp32", "int8"):
        assert main(["convert", str(cache), str(tmp_path / mode), "--mode", mode]) == 0
        status, content = _inspect(tmp_path / mode, capsys, "--full")
        assert status == 0
        assert content["hidden_states"]["states"] == [{"mode": mode, "rows": 900, "features": 64, "count": 4}]
        assert content["identity"] == {**IDENTITY.to_dict(), "mode": mode}
        for path in cache.glob(f"*/*/{STATE}"):
            other = tmp_path / mode / path.relative_to(cache)
            before, after = peek_hidden_state(path), peek_hidden_state(other)
            assert (before.key, before.origin, before.info.padding_rows) == (
                after.key,
                after.origin,
                after.info.padding_rows,
            )
            state, converted = peek_feature(path, "hidden_state"), peek_feature(other, "hidden_state")
            if mode == "fp32":
                assert torch.equal(converted, state.float())
            else:
                assert 0 < (converted.float() - state.float()).abs().max() < 0.05
            for name in HIDDEN_STATE_LAYOUT.files[1:]:
                assert (other.parent / f"{name}.gz").read_bytes() == (path.parent / f"{name}.gz").read_bytes()
    # fp32 of bf16 values goes back without loss.
    assert main(["convert", str(tmp_path / "fp32"), str(tmp_path / "back"), "--mode", "bf16"]) == 0
    assert "finer than bf16" not in capsys.readouterr().out
    for path in cache.glob(f"*/*/{STATE}"):
        back = peek_feature(tmp_path / "back" / path.relative_to(cache), "hidden_state")
        assert torch.equal(back, peek_feature(path, "hidden_state"))
    assert main(["convert", str(cache), str(tmp_path / "int8"), "--mode", "bf16"]) == 2
    assert "mode differs" in capsys.readouterr().err
    assert main(["convert", str(cache), str(cache), "--mode", "int8"]) == 2


def test_what_is_rounded_is_not_converted_to_a_finer_mode(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = tmp_path / "int8"
    assert main(["convert", str(cache), str(coarse), "--mode", "int8"]) == 0
    for mode in ("bf16", "fp32"):
        assert main(["convert", str(coarse), str(tmp_path / "fine"), "--mode", mode]) == 2
        assert "the source is of mode int8" in capsys.readouterr().err
    assert not (tmp_path / "fine").exists()
    assert main(["convert", str(coarse), str(tmp_path / "copy"), "--mode", "int8"]) == 0
    shutil.rmtree(coarse / "_recogdrive")
    capsys.readouterr()
    assert main(["convert", str(coarse), str(tmp_path / "fine"), "--mode", "bf16"]) == 1
    assert "is of mode int8; in mode bf16 nothing would tell" in capsys.readouterr().out
    source = ["--source-file", STATE, "--source-key", "hidden_state"]
    assert main(["convert", str(coarse), str(tmp_path / "fine"), "--mode", "bf16", *source]) == 1
    assert "without naming a source file and key" in capsys.readouterr().out
    assert not list((tmp_path / "fine").glob("*/*/*"))


def test_where_a_conversion_may_go(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    claim(other, IDENTITY)
    for target, reason in (
        (cache / "log_0" / "int8", "must not lie within each other"),
        (tmp_path, "must not lie within each other"),
        (other / "int8", f"lies in the cache {other}"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert main(["convert", str(cache), str(target), "--mode", "int8"]) == 2
        assert reason in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: dict) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(conversion, "write_feature", full)
    assert main(["convert", str(cache), str(tmp_path / "int8"), "--mode", "int8"]) == 2
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err


def test_an_interrupted_conversion_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = conversion.write_feature, []

    def interrupted(path: Path, content: dict) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    monkeypatch.setattr(conversion, "write_feature", interrupted)
    command = ["convert", str(cache), str(tmp_path / "int8"), "--mode", "int8", "--workers", "1"]
    assert main(command) == 130
    assert len(list((tmp_path / "int8").glob(f"*/*/{STATE}"))) == 2
    monkeypatch.undo()
    capsys.readouterr()
    assert main(command) == 0
    assert "2 scenes converted" in capsys.readouterr().out
    assert _inspect(tmp_path / "int8", capsys, "--full")[0] == 0


def _foreign(root: Path, scenes: int = 3, length: int = 900) -> None:
    for index in range(scenes):
        dump(
            root / "log" / f"{index:016x}" / "vlm.gz",
            {
                "states": rows(index, length).float(),
                "past": np.full(12, index, dtype=np.float64),
                "status": torch.arange(8),
                "future": torch.ones(8, 3, dtype=torch.float64),
            },
        )


def test_convert_a_cache_of_other_software(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _foreign(tmp_path / "source")
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "target"), "--mode", "bf16"]
    source = ["--source-file", "vlm.gz", "--source-key", "states"]
    small = ["--past-poses", "vlm.gz:past", "--ego-status", "vlm.gz:status", "--trajectory", "vlm.gz:future"]
    assert main([*command, *source, *small]) == 0
    status, content = _inspect(tmp_path / "target", capsys, "--full")
    assert status == 0
    assert content["hidden_states"]["scenes"] == 3
    assert content["identity"] is None
    folder = tmp_path / "target" / "log" / f"{2:016x}"
    head = peek_hidden_state(folder / STATE)
    assert (head.info.padding_rows, head.key) == (9, None)
    assert torch.equal(peek_feature(folder / STATE, "hidden_state"), rows(2))
    assert torch.equal(peek_feature(folder / f"{EGO_CACHE}.gz", "past_poses"), torch.full((4, 3), 2.0))
    assert peek_feature(folder / f"{EGO_CACHE}.gz", "ego_status").tolist() == list(range(8))
    assert peek_feature(folder / f"{TRAJECTORY_CACHE}.gz", "trajectory").dtype == torch.float32
    assert peek_feature(folder / f"{TOKEN_CACHE}.gz", "token") == f"{2:016x}"


def test_a_conversion_goes_on_with_the_same_settings_only(
    tmp_path: Path, tiny_vlm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _foreign(tmp_path / "source")
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "target")]
    source = ["--source-file", "vlm.gz", "--source-key", "states"]
    assert main([*command, "--mode", "int8", *source]) == 0
    capsys.readouterr()
    assert main([*command, "--mode", "bf16", *source]) == 1
    assert "is there in mode int8, not bf16: use another target" in capsys.readouterr().out
    assert main([*command, "--mode", "int8", *source, "--vlm", str(tiny_vlm), "--hidden-length", "900"]) == 2
    assert "without saying what made them" in capsys.readouterr().err
    for half in ("--past-poses", "--ego-status"):
        assert main([*command, "--mode", "int8", *source, half, "vlm.gz:past"]) == 2
        assert "belong together" in capsys.readouterr().err
    small = ["--past-poses", "vlm.gz:past", "--ego-status", "vlm.gz:status", "--trajectory", "vlm.gz:future"]
    assert main([*command[:1], *command[1:], "--mode", "int8", *small]) == 2
    assert "need --source-file" in capsys.readouterr().err
    assert _inspect(tmp_path / "target", capsys)[1]["hidden_states"]["scenes"] == 0
    assert main([*command, "--mode", "int8", *source, *small]) == 0
    assert "3 of those got files that they lacked" in capsys.readouterr().out
    assert _inspect(tmp_path / "target", capsys, "--full")[1]["hidden_states"]["scenes"] == 3
    claim(tmp_path / "claimed", IDENTITY)
    command[2] = str(tmp_path / "claimed")
    assert main([*command, "--mode", "bf16", *source]) == 2
    assert "nobody says what made the source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--samples", "0"), ("--processes", "-1"), ("--scenes", "0"), ("--scenes", "navtran")]
)
def test_numbers_of_an_estimate(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["estimate", "blobs", "--vlm", "vlm", option, value])
    assert f"argument {option}: must be" in capsys.readouterr().err


def test_what_other_software_holds_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    _foreign(source)
    dump(source / "log" / "other_length" / "vlm.gz", {"states": torch.zeros(7, 64)})
    dump(source / "log" / "not_finite" / "vlm.gz", {"states": torch.full((900, 64), torch.nan)})
    dump(source / "log" / "cut" / "vlm.gz", {"states": rows().float()})
    cut(source / "log" / "cut" / "vlm.gz")
    command = ["convert", str(source), str(target), "--mode", "bf16", "--source-file", "vlm.gz", "--source-key"]
    assert main([*command, "states"]) == 1
    printed = capsys.readouterr().out
    assert "3 scenes converted" in printed
    for reason in ("shape [7, 64], expected [900, 64]", "not finite", "is cut off", "lack files that training needs"):
        assert reason in printed
    command[2] = str(tmp_path / "another")
    assert main([*command, "nothing"]) == 1
    assert "no entry 'nothing'; it holds: states (float32 [900, 64]), past (float64 [12])" in capsys.readouterr().out
    assert main([*command[:-1]]) == 2
    assert "belong together" in capsys.readouterr().err


def test_the_vlm_of_other_software_can_be_stated(
    tmp_path: Path, tiny_vlm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    _foreign(source)
    command = ["convert", str(source), str(tmp_path / "target"), "--mode", "bf16", "--vlm", str(tiny_vlm)]
    source_options = ["--source-file", "vlm.gz", "--source-key", "states", "--hidden-length", "900"]
    assert main([*command, *source_options]) == 1
    assert "shape [900, 64], expected [900, 32]" in capsys.readouterr().out
    identity = read_identity(tmp_path / "target")
    assert identity is not None
    assert (identity.hidden_size, identity.hidden_length, identity.mode) == (32, 900, "bf16")


@pytest.mark.parametrize(("padding", "expected"), [(0, 0), (1, 0), (2, 2), (9, 9), (12, 12)])
def test_leading_equal_rows(padding: int, expected: int) -> None:
    assert leading_equal_rows(rows(length=12, padding=padding)) == expected


def test_finer_than_bf16_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump(tmp_path / "source" / "log" / "a" / "vlm.gz", {"states": torch.randn(20, 8)})
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "target"), "--mode", "bf16"]
    assert main([*command, "--source-file", "vlm.gz", "--source-key", "states"]) == 0
    assert "1 of them held values finer than bf16" in capsys.readouterr().out


def test_estimate(
    tmp_path: Path, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for log in ("a", "b"):
        (tmp_path / "blobs" / log / "CAM_F0").mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng(index).integers(0, 255, (108, 192, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "blobs" / log / "CAM_F0" / f"{index}.jpg")
    command = ["estimate", str(tmp_path / "blobs"), "--vlm", str(tiny_vlm), "--dtype", "float32", "--device", "cpu"]
    command += ["--hidden-length", "640", "--cache-path", str(tmp_path / "cache"), "--samples", "3"]
    assert main([*command, "--scenes", "1000", "--processes", "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["hidden_state"] == [640, 32]
    assert content["samples"] == 3
    parts = sum(content[name] for name in ("read_s", "prepare_s", "vlm_s", "write_s"))
    assert content["hours"] == pytest.approx(1000 * parts / 2 / 3600)
    assert content["disk_bytes"] == pytest.approx(1000 * content["scene_bytes"])
    assert 20_000 < content["scene_bytes"] < 640 * 32 * 2 + 20_000
    assert not list((tmp_path / "cache").iterdir())
    claim(tmp_path / "cache", IDENTITY)
    with monkeypatch.context() as patch:
        patch.setattr(cache_estimate.pickle, "dump", lambda *_: os._exit(9))  # as if it were killed
        if (child := os.fork()) == 0:
            main(command)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["_recogdrive"]
    assert len(list((tmp_path / "cache" / "_recogdrive").glob("estimate.*.partial"))) == 1
    assert main([*command]) == 0
    assert "103288 scenes" in capsys.readouterr().out
    assert main(["estimate", str(tmp_path / "cache"), *command[2:]]) == 2
    assert "expected LOG/CAM_F0/*.jpg" in capsys.readouterr().err


def test_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "absent")]) == 2
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no hidden states" in capsys.readouterr().err
