"""The checker of submissions: each fault planted, in the files of both NAVSIM versions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from submission_files import CREDIT, SYNTHETIC, TIMES, TOKENS, Check, arc, findings

from navsim_recogdrive.agents.check_submission import main

pytestmark = pytest.mark.navsim


def test_sound_files_of_both_versions(
    submission_v1: dict[str, Any], submission_v2: dict[str, Any], check_submission: Check
) -> None:
    report = check_submission(submission_v1)
    assert (report["valid"], report["format"], report["findings"]) == (True, "v1.1", [])
    assert report["scenes"] == {"predictions[0]": 6}
    assert report["tokens_checked"]
    report = check_submission(submission_v2)
    assert (report["valid"], report["format"], report["findings"]) == (True, "v2.x", [])
    assert report["scenes"] == {"first_stage_predictions[0]": 6, "second_stage_predictions[0]": 3}


def test_several_seeds_are_for_version_1(
    submission_v1: dict[str, Any], submission_v2: dict[str, Any], check_submission: Check
) -> None:
    submission_v1["predictions"] *= 3
    report = check_submission(submission_v1)
    assert report["valid"]
    assert report["scenes"] == {f"predictions[{seed}]": 6 for seed in range(3)}
    del submission_v1["predictions"][1]
    submission_v1["predictions"][1] = dict(list(submission_v1["predictions"][0].items())[1:])
    report = check_submission(submission_v1)
    assert findings(report) == [("error", "missing_tokens")]
    assert "in predictions[1]" in report["findings"][0]["message"]
    submission_v2["first_stage_predictions"] *= 2
    assert ("error", "format") in findings(check_submission(submission_v2))


def test_what_users_pickle_by_mistake_is_explained(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    wrong = {**submission_v1, "authors": OmegaConf.create(["A", "B"])}
    assert "must each be one text" in check_submission(wrong)["findings"][0]["message"]
    submission_v1["predictions"][0][TOKENS[0]] = submitted_trajectory(torch.zeros(8, 3))
    assert "poses must be numpy arrays" in check_submission(submission_v1)["findings"][0]["message"]


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1])])
def test_files_that_are_no_submission(check_submission: Check, content: bytes) -> None:
    report = check_submission(content)
    assert not report["valid"]
    assert report["format"] is None


def test_a_truncated_file_and_none(
    submission_v1: dict[str, Any], check_submission: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert findings(check_submission(pickle.dumps(submission_v1)[:-40])) == [("error", "unreadable")]
    assert main(["/nowhere/submission.pkl"]) == 1
    assert "/nowhere/submission.pkl cannot be read: No such file" in capsys.readouterr().out


@pytest.mark.parametrize("name", CREDIT)
@pytest.mark.parametrize(("value", "said"), [(None, "must be a text"), ("MUST_SET", "not filled in"), (" ", "not fil")])
def test_metadata(
    submission_v1: dict[str, Any], check_submission: Check, name: str, value: str | None, said: str
) -> None:
    submission_v1[name] = value
    report = check_submission(submission_v1)
    assert findings(report) == [("error", "metadata")]
    assert repr(name) in report["findings"][0]["message"]
    assert said in report["findings"][0]["message"]


def test_odd_metadata_is_a_warning(submission_v1: dict[str, Any], check_submission: Check) -> None:
    report = check_submission({**submission_v1, "email": "none", "note": "hello"})
    assert report["valid"]
    assert findings(report) == [("warning", "metadata"), ("warning", "format")]


def test_missing_metadata_field(submission_v1: dict[str, Any], check_submission: Check) -> None:
    del submission_v1["country / region"]
    assert findings(check_submission(submission_v1)) == [("error", "metadata")]


@pytest.mark.parametrize("predictions", [None, [], {}, [1], "abc"])
def test_predictions_of_another_form(submission_v1: dict[str, Any], check_submission: Check, predictions: Any) -> None:
    assert findings(check_submission({**submission_v1, "predictions": predictions}))[0] == ("error", "format")


def test_both_formats_or_neither(
    submission_v1: dict[str, Any], submission_v2: dict[str, Any], check_submission: Check
) -> None:
    assert "found both" in check_submission({**submission_v1, **submission_v2})["findings"][0]["message"]
    assert "found neither" in check_submission(CREDIT)["findings"][0]["message"]
    del submission_v2["second_stage_predictions"]
    assert ("error", "format") in findings(check_submission(submission_v2))


def test_missing_and_extra_scenes(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    predictions = submission_v1["predictions"][0]
    del predictions[TOKENS[1]], predictions[TOKENS[4]]
    predictions["ffff"] = submitted_trajectory()
    report = check_submission(submission_v1)
    assert findings(report) == [("error", "missing_tokens"), ("error", "extra_tokens")]
    missing, extra = report["findings"]
    assert missing["tokens"] == [TOKENS[1], TOKENS[4]]
    assert "2 of the 6 scenes" in missing["message"]
    assert extra["tokens"] == ["ffff"]


def test_a_scene_in_both_stages_and_a_token_that_is_no_text(
    submission_v2: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    submission_v2["second_stage_predictions"][0][TOKENS[0]] = submitted_trajectory()
    assert findings(check_submission(submission_v2)) == [("error", "tokens_in_both_stages")]
    submission_v2["second_stage_predictions"][0] = {7: submitted_trajectory()}
    assert ("error", "format") in findings(check_submission(submission_v2))


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
def test_faulty_poses(
    submission_v1: dict[str, Any],
    check_submission: Check,
    submitted_trajectory: Callable[..., Any],
    poses: Any,
    code: str,
) -> None:
    submission_v1["predictions"][0][TOKENS[2]] = submitted_trajectory(poses)
    report = check_submission(submission_v1)
    assert findings(report) == [("error", code)]
    assert report["findings"][0]["tokens"] == [TOKENS[2]]


def test_another_sampling_or_no_trajectory(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    from navsim_recogdrive.agents.compat import TrajectorySampling

    for sampling in (TrajectorySampling(num_poses=8, interval_length=0.1), "0.5 s"):
        submission_v1["predictions"][0][TOKENS[2]] = submitted_trajectory(sampling=sampling)
        assert findings(check_submission(submission_v1)) == [("error", "sampling")]
    submission_v1["predictions"][0][TOKENS[2]] = arc()
    assert findings(check_submission(submission_v1)) == [("error", "trajectory_type")]


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
    submission_v1: dict[str, Any],
    check_submission: Check,
    submitted_trajectory: Callable[..., Any],
    poses: Any,
    codes: list[str],
) -> None:
    submission_v1["predictions"][0][TOKENS[3]] = submitted_trajectory(poses)
    report = check_submission(submission_v1)
    assert report["valid"]
    found = [code for _, code in findings(report)]
    assert set(codes) <= set(found)
    assert bool(codes) == bool(found)
    assert all(finding["tokens"] == [TOKENS[3]] for finding in report["findings"])


def test_headings_may_pass_pi(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    poses = arc(6, 1.2)
    poses[:, 2] = np.angle(np.exp(1j * poses[:, 2]))
    assert poses[:, 2].min() < -1
    submission_v1["predictions"][0][TOKENS[3]] = submitted_trajectory(poses)
    assert check_submission(submission_v1)["findings"] == []


def test_plans_that_are_all_the_same(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any]
) -> None:
    submission_v1["predictions"] = [{token: submitted_trajectory() for token in TOKENS}]
    assert findings(check_submission(submission_v1)) == [("warning", "identical")]


def test_without_expected_tokens_it_says_so(
    submission_v1: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "submission.pkl"
    file.write_bytes(pickle.dumps(submission_v1))
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


def test_stages_are_told_apart_by_the_split(submission_v2: dict[str, Any]) -> None:
    from navsim_recogdrive.agents.check_submission import Report, _check_tokens, _stages
    from navsim_recogdrive.agents.submission_tokens import ExpectedTokens

    swapped = {
        **submission_v2,
        "first_stage_predictions": submission_v2["second_stage_predictions"],
        "second_stage_predictions": submission_v2["first_stage_predictions"],
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
    tokens = f"train_test_split.scene_filter.tokens=['{one}', 'other']"
    narrowed = tokens_of_split("test", [every_frame, tokens])
    assert narrowed.first == {one}, "of the data that are here"
    assert not found.listed
    assert not narrowed.listed
    given = tokens_of_split("test", [tokens, *second])
    assert (given.first, given.second, given.listed) == ({one, "other"}, frozenset(), True), "wherever their data are"
    if NAVSIM_MAJOR >= 2:
        logs = "train_test_split.scene_filter.log_names=[one]"
        with pytest.raises(NoSuchTokens, match="no folder of second-stage scenes .*: give synthetic_scenes_path"):
            tokens_of_split("warmup_two_stage", [logs])
        first = "train_test_split.scene_filter.tokens=[one]"
        with pytest.raises(NoSuchTokens, match="no folder of second-stage scenes"):
            tokens_of_split("warmup_two_stage", [first])  # NAVSIM plans the second stage of these alone
        assert tokens_of_split("private_test_hard_two_stage", [first]).listed
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(navsim_world / "nowhere"))
    with pytest.raises(NoSuchTokens, match="check OPENSCENE_DATA_ROOT"):
        tokens_of_split("test", [every_frame])


def test_files_without_a_trajectory(
    submission_v1: dict[str, Any], submission_v2: dict[str, Any], tmp_path: Path
) -> None:
    from navsim_recogdrive.agents.check_submission import check_file
    from navsim_recogdrive.agents.submission_tokens import ExpectedTokens

    def codes(content: dict[str, Any], expected: ExpectedTokens | None) -> list[tuple[str, str]]:
        (tmp_path / "file").write_bytes(pickle.dumps(content))
        return [(one.level, one.code) for one in check_file(tmp_path / "file", expected).findings]

    unchecked = ("warning", "tokens_not_checked")
    assert codes({**submission_v1, "predictions": [{}]}, None) == [("error", "empty"), unchecked]
    assert codes({**submission_v2, "first_stage_predictions": [{}]}, None) == [("error", "empty"), unchecked]
    one_stage = {**submission_v2, "second_stage_predictions": [{}]}
    assert codes(one_stage, None) == [("warning", "no_second_stage"), unchecked]
    tokens = frozenset(TOKENS)
    assert codes(one_stage, ExpectedTokens(tokens, None, "a list")) == [("warning", "no_second_stage")]
    assert codes(one_stage, ExpectedTokens(tokens, frozenset(), "a split of one stage")) == []
    assert codes(one_stage, ExpectedTokens(tokens, frozenset(SYNTHETIC), "of two")) == [("error", "missing_tokens")]
    of_the_data = ExpectedTokens(tokens, None, "a split", listed=False)
    assert codes(submission_v1, of_the_data) == [("warning", "tokens_of_this_machine")]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e308, -1e308, 6e5])
def test_poses_out_of_every_range(
    submission_v1: dict[str, Any], check_submission: Check, submitted_trajectory: Callable[..., Any], far: float
) -> None:
    for axis in range(3):
        poses = arc().astype(np.float64)
        poses[4:, axis] = far
        submission_v1["predictions"][0][TOKENS[2]] = submitted_trajectory(poses)
        report = check_submission(submission_v1)
        assert findings(report) == [("error", "out_of_range")]
        assert report["findings"][0]["tokens"] == [TOKENS[2]]
