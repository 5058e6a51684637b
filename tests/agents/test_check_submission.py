"""The checker of submissions: each fault planted, in the files of both NAVSIM versions."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from navsim_recogdrive.agents.check_submission import main
from navsim_recogdrive.agents.submission_arrays import UnreadableSubmission
from navsim_recogdrive.agents.submission_file import SubmittedSampling, SubmittedTrajectory, read_submission

TIMES = np.arange(1, 9) * 0.5
CREDIT = {"team_name": "T", "authors": "A, B", "email": "a@b.c", "institution": "I", "country / region": "CH"}
TOKENS = [f"{index:016x}" for index in range(6)]
SYNTHETIC = [f"{index:017x}" for index in range(3)]


def arc(speed: float = 8.0, yaw_rate: float = 0.1) -> np.ndarray[Any, Any]:
    """Poses [8, 3] of a steady turn."""
    heading = yaw_rate * TIMES
    radius = speed / yaw_rate
    return np.stack([radius * np.sin(heading), radius * (1 - np.cos(heading)), heading], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def trajectory() -> Callable[..., Any]:
    """``trajectory(poses)``: what NAVSIM pickles, with its class names; unchecked, as a pickle may be."""
    try:
        from navsim_recogdrive.agents.compat import Trajectory, TrajectorySampling
    except ImportError:
        pytest.skip("NAVSIM is not importable")

    def make(poses: Any = None, sampling: Any = None) -> Any:
        made = Trajectory(arc(), TrajectorySampling(time_horizon=4, interval_length=0.5))
        made.poses = made.poses if poses is None else poses
        made.trajectory_sampling = made.trajectory_sampling if sampling is None else sampling
        return made

    return make


@pytest.fixture
def v1(trajectory: Callable[..., Any]) -> dict[str, Any]:
    return {**CREDIT, "predictions": [{token: trajectory(arc(8 + n)) for n, token in enumerate(TOKENS)}]}


@pytest.fixture
def v2(trajectory: Callable[..., Any]) -> dict[str, Any]:
    second = {token: trajectory(arc(5 + n)) for n, token in enumerate(SYNTHETIC)}
    first = {token: trajectory(arc(8 + n)) for n, token in enumerate(TOKENS)}
    return {**CREDIT, "first_stage_predictions": [first], "second_stage_predictions": [second]}


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """``check(content)``: the report on a pickle of it, held against ``TOKENS`` (v2.x: and ``SYNTHETIC``)."""

    def run(content: Any, *arguments: str, tokens: list[str] | None = None) -> dict[str, Any]:
        file = tmp_path / "submission.pkl"
        file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        two = isinstance(content, dict) and "first_stage_predictions" in content
        (tmp_path / "tokens.txt").write_text("\n".join(tokens or [*TOKENS, *(SYNTHETIC if two else [])]))
        status = main([str(file), "--tokens", str(tmp_path / "tokens.txt"), "--json", *arguments])
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == (0 if report["valid"] else 1)
        return report

    return run


def findings(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(finding["level"], finding["code"]) for finding in report["findings"]]


Check = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.navsim


def test_sound_files_of_both_versions(v1: dict[str, Any], v2: dict[str, Any], check: Check) -> None:
    report = check(v1)
    assert (report["valid"], report["format"], report["findings"]) == (True, "v1.1", [])
    assert report["scenes"] == {"predictions[0]": 6}
    assert report["tokens_checked"]
    report = check(v2)
    assert (report["valid"], report["format"], report["findings"]) == (True, "v2.x", [])
    assert report["scenes"] == {"first_stage_predictions[0]": 6, "second_stage_predictions[0]": 3}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle(v1: dict[str, Any], check: Check, protocol: int) -> None:
    assert check(pickle.dumps(v1, protocol=protocol))["findings"] == []


def test_several_seeds_are_for_version_1(v1: dict[str, Any], v2: dict[str, Any], check: Check) -> None:
    v1["predictions"] *= 3
    assert check(v1)["valid"]
    del v1["predictions"][1]
    v1["predictions"][1] = dict(list(v1["predictions"][0].items())[1:])
    report = check(v1)
    assert findings(report) == [("error", "missing_tokens")]
    assert "in predictions[1]" in report["findings"][0]["message"]
    v2["first_stage_predictions"] *= 2
    assert ("error", "format") in findings(check(v2))


def test_nothing_is_run(check: Check, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    report = check({**CREDIT, "predictions": [{TOKENS[0]: Evil()}]})
    assert findings(report) == [("error", "unreadable")]
    assert "it names posix.mkdir, which no submission needs" in report["findings"][0]["message"]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnavsim.common.dataclasses\nScene\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x04load\x93.",
        b"(dp0\nP1\n.",
    ],
)
def test_names_that_no_submission_needs_are_refused(tmp_path: Path, opcodes: bytes) -> None:
    file = tmp_path / "evil.pkl"
    file.write_bytes(opcodes)
    with pytest.raises(UnreadableSubmission):
        read_submission(file)


def test_what_users_pickle_by_mistake_is_explained(
    v1: dict[str, Any], check: Check, trajectory: Callable[..., Any]
) -> None:
    wrong = {**v1, "authors": OmegaConf.create(["A", "B"])}
    assert "must each be one text" in check(wrong)["findings"][0]["message"]
    v1["predictions"][0][TOKENS[0]] = trajectory(torch.zeros(8, 3))
    assert "poses must be numpy arrays" in check(v1)["findings"][0]["message"]


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1])])
def test_files_that_are_no_submission(check: Check, content: bytes) -> None:
    report = check(content)
    assert not report["valid"]
    assert report["format"] is None


def test_a_truncated_file_and_none(v1: dict[str, Any], check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(check(pickle.dumps(v1)[:-40])) == [("error", "unreadable")]
    assert main(["/nowhere/submission.pkl"]) == 1
    assert "/nowhere/submission.pkl cannot be read: No such file" in capsys.readouterr().out


@pytest.mark.parametrize("name", CREDIT)
@pytest.mark.parametrize(("value", "said"), [(None, "must be a text"), ("MUST_SET", "not filled in"), (" ", "not fil")])
def test_metadata(v1: dict[str, Any], check: Check, name: str, value: str | None, said: str) -> None:
    v1[name] = value
    report = check(v1)
    assert findings(report) == [("error", "metadata")]
    assert repr(name) in report["findings"][0]["message"]
    assert said in report["findings"][0]["message"]


def test_odd_metadata_is_a_warning(v1: dict[str, Any], check: Check) -> None:
    report = check({**v1, "email": "none", "note": "hello"})
    assert report["valid"]
    assert findings(report) == [("warning", "metadata"), ("warning", "format")]


def test_missing_metadata_field(v1: dict[str, Any], check: Check) -> None:
    del v1["country / region"]
    assert findings(check(v1)) == [("error", "metadata")]


@pytest.mark.parametrize("predictions", [None, [], {}, [1], "abc"])
def test_predictions_of_another_form(v1: dict[str, Any], check: Check, predictions: Any) -> None:
    assert findings(check({**v1, "predictions": predictions}))[0] == ("error", "format")


def test_both_formats_or_neither(v1: dict[str, Any], v2: dict[str, Any], check: Check) -> None:
    assert "found both" in check({**v1, **v2})["findings"][0]["message"]
    assert "found neither" in check(CREDIT)["findings"][0]["message"]
    del v2["second_stage_predictions"]
    assert ("error", "format") in findings(check(v2))


def test_missing_and_extra_scenes(v1: dict[str, Any], check: Check, trajectory: Callable[..., Any]) -> None:
    predictions = v1["predictions"][0]
    del predictions[TOKENS[1]], predictions[TOKENS[4]]
    predictions["ffff"] = trajectory()
    report = check(v1)
    assert findings(report) == [("error", "missing_tokens"), ("error", "extra_tokens")]
    missing, extra = report["findings"]
    assert missing["tokens"] == [TOKENS[1], TOKENS[4]]
    assert "2 of the 6 scenes" in missing["message"]
    assert extra["tokens"] == ["ffff"]


def test_a_scene_in_both_stages_and_a_token_that_is_no_text(
    v2: dict[str, Any], check: Check, trajectory: Callable[..., Any]
) -> None:
    v2["second_stage_predictions"][0][TOKENS[0]] = trajectory()
    assert findings(check(v2)) == [("error", "tokens_in_both_stages")]
    v2["second_stage_predictions"][0] = {7: trajectory()}
    assert ("error", "format") in findings(check(v2))


def _poses(**changed: Any) -> np.ndarray[Any, Any]:
    poses = arc()
    for index, value in changed.items():
        poses[int(index[1:])] = value
    return poses


@pytest.mark.parametrize(
    ("poses", "code"),
    [
        (arc().tolist(), "poses_type"),
        (arc().astype(int), "poses_type"),
        (np.array([["a"] * 3] * 8, dtype=object), "poses_type"),
        (arc()[:7], "poses_shape"),
        (arc()[:, :2], "poses_shape"),
        (arc()[None], "poses_shape"),
        (_poses(_3=np.nan), "not_finite"),
        (_poses(_7=np.inf), "not_finite"),
    ],
)
def test_faulty_poses(v1: dict[str, Any], check: Check, trajectory: Callable[..., Any], poses: Any, code: str) -> None:
    v1["predictions"][0][TOKENS[2]] = trajectory(poses)
    report = check(v1)
    assert findings(report) == [("error", code)]
    assert report["findings"][0]["tokens"] == [TOKENS[2]]


def test_another_sampling_or_no_trajectory(v1: dict[str, Any], check: Check, trajectory: Callable[..., Any]) -> None:
    from navsim_recogdrive.agents.compat import TrajectorySampling

    for sampling in (TrajectorySampling(num_poses=8, interval_length=0.1), "0.5 s"):
        v1["predictions"][0][TOKENS[2]] = trajectory(sampling=sampling)
        assert findings(check(v1)) == [("error", "sampling")]
    v1["predictions"][0][TOKENS[2]] = arc()
    assert findings(check(v1)) == [("error", "trajectory_type")]


def _straight(distances: Any) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(distances, dtype=np.float32), np.zeros(8), np.zeros(8)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("poses", "codes"),
    [
        (_straight(TIMES * 39), []),
        (_straight(TIMES * 41), ["speed"]),
        (_straight(np.zeros(8)), []),
        (_straight(8 * TIMES - TIMES**2), []),  # brakes by 2 m/s^2 to a stop
        (_straight(np.minimum(8 * TIMES, 16)), ["acceleration"]),  # 8 m/s, then none
        (_straight(10 * TIMES - 2 * TIMES**2), ["reversing"]),  # goes on backwards after its stop
        (_straight(-0.4 * TIMES), []),
        (arc(10, 1.4), []),
        (arc(10, 1.6), ["yaw_rate"]),
        (arc(10, -1.6), ["yaw_rate"]),
        (arc() @ np.diag([1, 1, 180 / np.pi]).astype(np.float32), ["yaw_rate", "sideways"]),  # degrees
        (arc()[:, [1, 0, 2]], ["sideways"]),  # x and y changed over
    ],
)
def test_implausible_plans_are_warned_of(
    v1: dict[str, Any], check: Check, trajectory: Callable[..., Any], poses: Any, codes: list[str]
) -> None:
    v1["predictions"][0][TOKENS[3]] = trajectory(poses)
    report = check(v1)
    assert report["valid"]
    found = [code for _, code in findings(report)]
    assert set(codes) <= set(found)
    assert bool(codes) == bool(found)
    assert all(finding["tokens"] == [TOKENS[3]] for finding in report["findings"])


def test_headings_may_pass_pi(v1: dict[str, Any], check: Check, trajectory: Callable[..., Any]) -> None:
    poses = arc(6, 1.2)
    poses[:, 2] = np.angle(np.exp(1j * poses[:, 2]))
    assert poses[:, 2].min() < -1
    v1["predictions"][0][TOKENS[3]] = trajectory(poses)
    assert check(v1)["findings"] == []


def test_plans_that_are_all_the_same(v1: dict[str, Any], check: Check, trajectory: Callable[..., Any]) -> None:
    v1["predictions"] = [{token: trajectory() for token in TOKENS}]
    assert findings(check(v1)) == [("warning", "identical")]


def test_without_expected_tokens_it_says_so(
    v1: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "submission.pkl"
    file.write_bytes(pickle.dumps(v1))
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{file}: NAVSIM v1.1, 6 scenes in predictions[0]"
    assert printed[1].startswith("warning (tokens_not_checked): whether all scenes are there was not checked")
    assert printed[2] == "valid: 0 errors, 1 warnings"


def test_what_cannot_be_checked_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "tokens.txt"
    empty.touch()
    for arguments, message in (
        (["--tokens", str(empty)], "holds no token"),
        (["--tokens", str(tmp_path / "none")], "cannot be read"),
        (["a=b"], "a=b is an override of the runner's, which only --split reads"),
        (["--split", "nowhere"], "the scenes of nowhere cannot be told"),
    ):
        assert main(["submission.pkl", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("leaderboard", ["navtest", "private_test_hard_two_stage"])
def test_a_leaderboards_tokens_are_those_that_its_split_lists(
    leaderboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any data on this machine."""
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR
    from navsim_recogdrive.agents.submission_tokens import NoSuchTokens, tokens_of_split

    monkeypatch.delenv("OPENSCENE_DATA_ROOT", raising=False)
    if NAVSIM_MAJOR < 2 and "two_stage" in leaderboard:
        with pytest.raises(NoSuchTokens, match="cannot be told"):
            tokens_of_split(leaderboard, [])
        return
    expected = tokens_of_split(leaderboard, ["agent.checkpoint_path=x"])
    assert (len(expected.first), len(expected.second or ())) == {
        "navtest": (12146, 0),
        "private_test_hard_two_stage": (140, 1732),
    }[leaderboard]


def test_stages_are_told_apart_by_the_split(v2: dict[str, Any]) -> None:
    from navsim_recogdrive.agents.check_submission import Report, _check_tokens, _stages
    from navsim_recogdrive.agents.submission_tokens import ExpectedTokens

    swapped = {
        **v2,
        "first_stage_predictions": v2["second_stage_predictions"],
        "second_stage_predictions": v2["first_stage_predictions"],
    }
    report = Report("x")
    _check_tokens(report, _stages(report, swapped), ExpectedTokens(frozenset(TOKENS), frozenset(SYNTHETIC), "a split"))
    assert [finding.code for finding in report.findings] == ["missing_tokens", "extra_tokens"] * 2


def test_other_splits_are_read_from_their_logs(navsim_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR
    from navsim_recogdrive.agents.submission_tokens import NoSuchTokens, tokens_of_split

    every_frame = "train_test_split.scene_filter.frame_interval=1"
    second = ["++train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]"] if NAVSIM_MAJOR >= 2 else []
    monkeypatch.setenv("NAVSIM_EXP_ROOT", "unused")
    found = tokens_of_split("test", [every_frame, *second])
    assert len(found.first) > 5
    assert found.second == frozenset()
    one = sorted(found.first)[0]
    narrowed = tokens_of_split("test", [every_frame, f"train_test_split.scene_filter.tokens=['{one}', 'other']"])
    assert narrowed.first == {one}, "of the data that are here"
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(navsim_world / "nowhere"))
    with pytest.raises(NoSuchTokens, match="check OPENSCENE_DATA_ROOT"):
        tokens_of_split("test", [every_frame])


def test_stand_ins_hold_what_was_pickled(v1: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(v1))
    read = read_submission(tmp_path / "file")["predictions"][0][TOKENS[0]]
    assert isinstance(read, SubmittedTrajectory)
    assert isinstance(read.trajectory_sampling, SubmittedSampling)
    np.testing.assert_array_equal(read.poses, v1["predictions"][0][TOKENS[0]].poses)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _array(code: str, flags: int, data: bytes, shape: bytes = b"K\x02\x85", core: str = "numpy.core") -> bytes:
    """Opcodes of an array as numpy pickles it, of forged parts."""
    empty = f"c{core}.multiarray\n_reconstruct\ncnumpy\nndarray\n".encode() + b"K\x00\x85C\x01b\x87R"
    order = _text("|" if code == "O8" else "<")
    dtype = b"cnumpy\ndtype\n" + _text(code) + b"\x89\x88\x87R(K\x03" + order
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


def test_bytes_of_the_file_never_become_pointers(
    v1: dict[str, Any], check: Check, trajectory: Callable[..., Any]
) -> None:
    """An array of objects whose dtype says it holds none: numpy would take its bytes for their addresses."""
    pointers = struct.pack("<QQ", 0x4141414141414141, 0x42424242)
    for core in ("numpy.core", "numpy._core"):
        forged = b"\x80\x03}(" + _text("team_name") + _array("O8", 0, pointers, core=core) + b"u."
        assert findings(check(forged))[-1] == ("error", "format")
        assert "found numpy array" in check(forged)["findings"][0]["message"]
    v1["predictions"][0][TOKENS[0]] = trajectory("here")
    as_poses = pickle.dumps(v1, protocol=3).replace(_text("here"), _array("O8", 0, pointers))
    assert check(as_poses)["findings"][0]["message"].endswith("must be an array of floats, found O8")


def test_arrays_of_numbers_are_read_whatever_their_form(
    v1: dict[str, Any], tmp_path: Path, trajectory: Callable[..., Any]
) -> None:
    values = np.arange(24.0).reshape(4, 2, 3)
    forms = [values.astype(kind) for kind in ("?", "u1", "i8", "f2", "<f4", ">f8")]
    forms += [np.asfortranarray(values), values.transpose(1, 0, 2), values[:, ::-1], values[0, 0, 0]]
    for protocol, core in ((2, b"numpy.core."), (2, b"numpy._core."), (pickle.HIGHEST_PROTOCOL, None)):
        for form in forms:
            v1["predictions"][0][TOKENS[0]] = trajectory(form)
            pickled = pickle.dumps(v1, protocol=protocol)
            if core is not None:
                pickled = re.sub(rb"numpy\._?core\.", core, pickled)
            (tmp_path / "file").write_bytes(pickled)
            poses = read_submission(tmp_path / "file")["predictions"][0][TOKENS[0]].poses
            np.testing.assert_array_equal(poses, form)
            assert isinstance(poses, float) if form.ndim == 0 else poses.dtype == form.dtype


@pytest.mark.parametrize(
    ("opcodes", "said"),
    [
        (_array("f4", 63, bytes(8)), "has fields or flags"),
        (_array("f4", 0, bytes(9)), "does not fit its 9 bytes"),
        (_array("f4", 0, b"", b"(" + b"J\xff\xff\xff\x7f" * 8 + b"t"), "does not fit its 0 bytes"),
        (_array("f4", 0, b"", b"(" + b"K\x01" * 99 + b"t"), "of another form"),
        (_array("f4", 0, b"", b"J\xff\xff\xff\xff\x85"), "of another form"),
        (
            b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + _text("O8") + b"\x85RC\x08" + bytes(8) + b"\x86R",
            "no num",
        ),
        (b"Nr\xff\xff\xff\xff", None),  # a memo of 4 billion places, in Python's unpickler
        (b"\x8e" + struct.pack("<Q", 2**60), "no whole pickle"),
        (b"\x8b\xff\xff\xff\x7f", "no whole pickle"),
        (b"I" + b"9" * 100_000 + b"\n", "no whole pickle"),
        (b"]" * 30_000 + b"a" * 29_999, None),
        (b"}(" + b")" + b"2\x86" * 60 + b"Nu", "opcode DUP"),
        (b"}()" + b"q\x00h\x00\x86" * 60 + b"Nu", "has the key a tuple of 2"),
        (b"N)R", "calls what no submission calls"),
        (
            b"c_codecs\nencode\nq\x00" + _text("x" * 99) + b"q\x010" + (b"h\x00h\x01" + _text("latin1") + b"\x86R") * 9,
            "encodes",
        ),
        (b"h\x05", "no whole pickle"),
        (b"0", "takes more from its stack"),
        (b"u", "looks for a mark"),
        (b"NNb", "sets the state of None"),
        (b"NNa", "appends to None"),
        (b"N(u", "sets entries of None"),
        (b"NN\x81", "makes an object"),
    ],
    ids=range(22),
)
def test_files_made_to_harm_are_one_clear_error(check: Check, opcodes: bytes, said: str | None) -> None:
    tracemalloc.start()
    report = check(b"\x80\x03" + opcodes + b".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert findings(report) == [("error", "unreadable" if said else "format")]
    assert (said or "a submission is a dict") in report["findings"][0]["message"]


def test_texts_of_the_file_are_shown_short_and_escaped(
    v1: dict[str, Any], tmp_path: Path, trajectory: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    v1["predictions"][0] |= {"\x1b[2J\ud800" + "x" * 10_000: trajectory([1])}
    v1 |= {"team_name": list(range(10**5)), "email": "y" * 10**5, "\x1b": 1}
    (tmp_path / "file").write_bytes(pickle.dumps(v1))
    main([str(tmp_path / "file")])
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed
    assert "'team_name' must be a text, found a list of 100000" in printed
    assert len(printed) < 2000


@pytest.mark.parametrize(
    "interval", [np.array([0.5, 0.5]), np.array(["a"], dtype=object), [0.5], "0.5", 10**5000, None], ids=range(6)
)
def test_a_sampling_of_another_type(
    v1: dict[str, Any], check: Check, trajectory: Callable[..., Any], interval: Any
) -> None:
    from navsim_recogdrive.agents.compat import TrajectorySampling

    sampling = TrajectorySampling(num_poses=8, interval_length=0.5)
    object.__setattr__(sampling, "interval_length", interval)
    v1["predictions"][0][TOKENS[2]] = trajectory(sampling=sampling)
    assert findings(check(v1)) == [("error", "sampling")]
    object.__setattr__(sampling, "interval_length", np.float64(0.5))
    assert check(v1)["valid"]


def test_files_without_a_trajectory(v1: dict[str, Any], v2: dict[str, Any], tmp_path: Path) -> None:
    from navsim_recogdrive.agents.check_submission import check_file
    from navsim_recogdrive.agents.submission_tokens import ExpectedTokens

    def codes(content: dict[str, Any], expected: ExpectedTokens | None) -> list[tuple[str, str]]:
        (tmp_path / "file").write_bytes(pickle.dumps(content))
        return [(one.level, one.code) for one in check_file(tmp_path / "file", expected).findings]

    unchecked = ("warning", "tokens_not_checked")
    assert codes({**v1, "predictions": [{}]}, None) == [("error", "empty"), unchecked]
    assert codes({**v2, "first_stage_predictions": [{}]}, None) == [("error", "empty"), unchecked]
    one_stage = {**v2, "second_stage_predictions": [{}]}
    assert codes(one_stage, None) == [("warning", "no_second_stage"), unchecked]
    tokens = frozenset(TOKENS)
    assert codes(one_stage, ExpectedTokens(tokens, None, "a list")) == [("warning", "no_second_stage")]
    assert codes(one_stage, ExpectedTokens(tokens, frozenset(), "a split of one stage")) == []
    assert codes(one_stage, ExpectedTokens(tokens, frozenset(SYNTHETIC), "of two")) == [("error", "missing_tokens")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e308, -1e308, 6e5])
def test_poses_out_of_every_range(v1: dict[str, Any], check: Check, trajectory: Callable[..., Any], far: float) -> None:
    for axis in range(3):
        poses = arc().astype(np.float64)
        poses[4:, axis] = far
        v1["predictions"][0][TOKENS[2]] = trajectory(poses)
        report = check(v1)
        assert findings(report) == [("error", "out_of_range")]
        assert report["findings"][0]["tokens"] == [TOKENS[2]]
