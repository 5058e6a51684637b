"""Checks a submission before it is uploaded.

    python -m navsim_recogdrive.agents.check_submission submission.pkl --split navtest [HYDRA OVERRIDES]

An error is what a leaderboard would refuse, score as missing or cannot compute with; a warning is what it would accept,
but no car would do.
The exit status is 0 without errors, 1 with, 2 if nothing could be checked against.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from navsim_recogdrive.agents.plausibility import FARTHEST, ODDITIES, largest_magnitudes
from navsim_recogdrive.agents.submission_arrays import SubmittedArray, UnreadableSubmission
from navsim_recogdrive.agents.submission_file import (
    SubmittedSampling,
    SubmittedTrajectory,
    describe,
    read_submission,
)
from navsim_recogdrive.agents.submission_tokens import ExpectedTokens, NoSuchTokens, read_tokens, tokens_of_split
from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S

METADATA = ("team_name", "authors", "email", "institution", "country / region")
V1, V2 = "v1.1", "v2.x"
_STAGES = {V1: ("predictions",), V2: ("first_stage_predictions", "second_stage_predictions")}
_PLACEHOLDERS = ("", "MUST_SET", "???")
_SHAPE = (HORIZON_POSES, 3)
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        level: ``error`` or ``warning``.
        code: what kind, for machines.
        message: what was found, against what is expected.
        tokens: the scenes it is about, all of them.
    """

    level: str
    code: str
    message: str
    tokens: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = f", and {len(self.tokens) - _SHOWN} more" if len(self.tokens) > _SHOWN else ""
        tokens = f": {', '.join(map(_printable, self.tokens[:_SHOWN]))}{more}" if self.tokens else ""
        return f"{self.level} ({self.code}): {self.message}{tokens}"


@dataclass
class Report:
    """What was found in a file.

    Attributes:
        file: its path.
        format: ``v1.1`` or ``v2.x``, by the NAVSIM that wrote it; ``None`` if it is neither.
        scenes: number of trajectories by name of the prediction.
        tokens_checked: whether its scenes were compared with the expected ones.
        findings: errors first.
    """

    file: str
    format: str | None = None
    scenes: dict[str, int] = field(default_factory=dict)
    tokens_checked: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether there is no error."""
        return all(finding.level != "error" for finding in self.findings)

    def error(self, code: str, message: str, tokens: Sequence[str] = ()) -> None:
        """Add an error."""
        self.findings.append(Finding("error", code, message, tuple(tokens)))

    def warn(self, code: str, message: str, tokens: Sequence[str] = ()) -> None:
        """Add a warning."""
        self.findings.append(Finding("warning", code, message, tuple(tokens)))

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: the attributes, and ``valid``."""
        return {"valid": self.valid, **asdict(self)}


def check_file(path: Path, expected: ExpectedTokens | None) -> Report:
    """Everything that is wrong or odd about the submission in ``path``.

    Args:
        path: a pickle by ``run_create_submission_pickle*.py`` or ``run_merge_submission_pickles.py``.
        expected: the scenes it must hold; ``None``: not checked, and said.
    """
    report = Report(str(path))
    try:
        content = read_submission(path)
    except UnreadableSubmission as error:
        report.error("unreadable", str(error))
        return report
    if not isinstance(content, dict):
        report.error("format", f"a submission is a dict, found {type(content).__name__}")
        return report
    _check_metadata(report, content)
    stages = _stages(report, content)
    if stages:
        _check_tokens(report, stages, expected)
        for name, trajectories in stages.items():
            _check_trajectories(report, name, trajectories)
    report.findings.sort(key=lambda finding: finding.level != "error")
    return report


def _check_metadata(report: Report, content: Mapping[Any, Any]) -> None:
    for name in METADATA:
        value = content.get(name)
        if not isinstance(value, str):
            report.error("metadata", f"{name!r} must be a text, found {describe(value)}")
        elif value.strip() in _PLACEHOLDERS:
            report.error("metadata", f"{name!r} is not filled in: {describe(value)}")
        elif name == "email" and "@" not in value:
            report.warn("metadata", f"'email' is no address: {describe(value)}")
    unknown = sorted(str(name) for name in content if name not in {*METADATA, *_STAGES[V1], *_STAGES[V2]})
    if unknown:
        report.warn("format", "entries that no leaderboard reads", unknown)


def _stages(report: Report, content: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """Trajectories by token, by a name such as ``predictions[0]``; fills in the report's format."""
    formats = [version for version, names in _STAGES.items() if any(name in content for name in names)]
    if len(formats) != 1:
        found = "both" if formats else "neither"
        report.error(
            "format", f"'predictions' (NAVSIM v1.1) or 'first_stage_predictions' (v2.x) must be there, found {found}"
        )
        return {}
    report.format = formats[0]
    stages: dict[str, Mapping[Any, Any]] = {}
    for name in _STAGES[report.format]:
        value = content.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
            report.error("format", f"{name!r} must be a list of dicts of trajectories, found {describe(value)}")
            continue
        if report.format == V2 and len(value) != 1:
            report.error("format", f"{name!r} must hold one dict, found {len(value)}: v2.x takes one seed only")
        report.scenes |= {f"{name}[{index}]": len(one) for index, one in enumerate(value)}
        first_place = {id(one): index for index, one in reversed(list(enumerate(value)))}
        # A list may hold one dict any number of times: it is looked at once.
        stages |= {f"{name}[{index}]": value[index] for index in sorted(first_place.values())}
    for name, trajectories in stages.items():
        if not trajectories and not name.startswith(_STAGES[V2][1]):
            report.error("empty", f"{name} holds no trajectory")
    return stages


def _printable(token: str) -> str:
    """A token as it is if it is one, else escaped and shortened."""
    return token if token.isascii() and token.isprintable() and len(token) <= 64 else describe(token)


def _check_tokens(report: Report, stages: Mapping[str, Mapping[Any, Any]], expected: ExpectedTokens | None) -> None:
    for name, trajectories in stages.items():
        if not_text := [describe(token) for token in trajectories if not isinstance(token, str)]:
            report.error("format", f"tokens of {name} that are no text", not_text)
    if report.format == V2:
        first, second = (set(stages.get(f"{name}[0]", {})) for name in _STAGES[V2])
        if both := sorted(map(str, first & second)):
            report.error("tokens_in_both_stages", "scenes in the first and the second stage", both)
        # Right for a split of one stage, which only a split tells.
        if not second and (expected is None or expected.second is None):
            report.warn("no_second_stage", f"{_STAGES[V2][1]!r} holds no trajectory, which two-stage leaderboards need")
    if expected is None:
        report.warn("tokens_not_checked", "whether all scenes are there was not checked: give --split or --tokens")
        return
    report.tokens_checked = True
    if not expected.listed:
        report.warn(
            "tokens_of_this_machine",
            f"{expected.source} lists no tokens, or overrides narrow it beyond them: scenes whose data are not on this "
            "machine were not missed",
        )
    if report.format == V1 and expected.second:
        report.error("format", f"{expected.source} has second-stage scenes, which only NAVSIM v2.x writes")
    compared: dict[str, tuple[set[Any], frozenset[str]]]
    if report.format == V1:
        compared = {name: (set(trajectories), expected.first) for name, trajectories in stages.items()}
    elif expected.second is None:
        compared = {"both stages": (first | second, expected.first)}
    else:
        compared = {"the first stage": (first, expected.first), "the second stage": (second, expected.second)}
    for name, (found, wanted) in compared.items():
        if missing := sorted(wanted - found):
            text = f"{len(missing)} of the {len(wanted)} scenes of {expected.source} have no trajectory in {name}"
            report.error("missing_tokens", f"{text} (the runner's log says where the agent failed)", missing)
        if extra := sorted(map(str, found - wanted)):
            report.error("extra_tokens", f"{len(extra)} scenes in {name} are none of {expected.source}", extra)


def _check_trajectories(report: Report, name: str, trajectories: Mapping[Any, Any]) -> None:
    faults: dict[tuple[str, str], list[str]] = {}
    sound: dict[str, Any] = {}
    for token, trajectory in trajectories.items():
        fault = _fault(trajectory)
        if fault is None:
            sound[str(token)] = trajectory.poses
        else:
            faults.setdefault(fault, []).append(str(token))
    for (code, text), tokens in faults.items():
        report.error(code, f"{len(tokens)} of {len(trajectories)} entries of {name}: {text}", tokens)
    if not sound:
        return
    tokens, poses = list(sound), np.stack(list(sound.values()))
    for oddity, values in largest_magnitudes(poses).items():
        beyond = np.flatnonzero(values > oddity.bound)
        if len(beyond):
            report.warn(
                oddity.code,
                f"{len(beyond)} of {len(poses)} trajectories of {name} {oddity.text} {oddity.bound:g} {oddity.unit}, "
                f"up to {values.max():.3g}",
                [tokens[index] for index in beyond],
            )
    if len(poses) > 1 and (poses == poses[0]).all():
        report.warn("identical", f"all {len(poses)} trajectories of {name} are the same")


def _fault(trajectory: Any) -> tuple[str, str] | None:
    """Code and text of what is wrong with one trajectory, or ``None``."""
    if not isinstance(trajectory, SubmittedTrajectory):
        return "trajectory_type", f"must be a NAVSIM Trajectory, found {describe(trajectory)}"
    poses = trajectory.poses
    if not isinstance(poses, np.ndarray) or not np.issubdtype(poses.dtype, np.floating):
        found = str(poses.dtype) if isinstance(poses, (np.ndarray, SubmittedArray)) else describe(poses)
        return "poses_type", f"poses must be an array of floats, found {found}"
    if poses.shape != _SHAPE:
        return "poses_shape", f"poses must have the shape {_SHAPE}, found {poses.shape}"
    expected = f"trajectory_sampling must be {HORIZON_POSES} poses at {POSE_INTERVAL_S} s"
    sampling = trajectory.trajectory_sampling
    if not isinstance(sampling, SubmittedSampling):
        return "sampling", f"{expected}, found {describe(sampling)}"
    interval, count = sampling.interval_length, sampling.num_poses
    # Types first: an array, say, is neither equal nor unequal.
    plain = type(interval) in (int, float) and type(count) in (int, float)
    if not plain or (interval, count) != (POSE_INTERVAL_S, HORIZON_POSES):
        return "sampling", f"{expected}, found {describe(count)} at {describe(interval)} s"
    if not np.isfinite(poses).all():
        return "not_finite", "poses that are not finite"
    if (np.abs(poses) > FARTHEST).any():
        return "out_of_range", f"poses beyond {FARTHEST:g} m or rad: they must be in the frame of the ego vehicle"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; returns the exit status."""
    bounds = ", ".join(f"{oddity.code} {oddity.bound:g} {oddity.unit}" for oddity in ODDITIES)
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.check_submission",
        description="Check a submission of NAVSIM's runners before it is uploaded. Nothing that the file names is run.",
        epilog=f"Warned of are trajectories beyond: {bounds}.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="submission.pkl, of NAVSIM v1.1 or v2.x")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--split", help="train_test_split that it must be complete for; needs NAVSIM")
    source.add_argument("--tokens", type=Path, metavar="FILE", help="the tokens it must hold, one per line")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="with --split: Hydra overrides that the runner was given"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        expected = None
        if options.split is not None:
            expected = tokens_of_split(options.split, options.overrides)
        elif options.overrides:
            raise NoSuchTokens(f"{options.overrides[0]} is an override of the runner's, which only --split reads")
        elif options.tokens is not None:
            expected = read_tokens(options.tokens)
    except (NoSuchTokens, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report = check_file(options.file, expected)
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        scenes = ", ".join(f"{count} scenes in {name}" for name, count in report.scenes.items())
        print(f"{report.file}: {f'NAVSIM {report.format}, {scenes}' if scenes else 'no predictions'}")
        for finding in report.findings:
            print(finding)
        errors = sum(finding.level == "error" for finding in report.findings)
        print(f"{'valid' if report.valid else 'not valid'}: {errors} errors, {len(report.findings) - errors} warnings")
    return 0 if report.valid else 1


if __name__ == "__main__":
    sys.exit(main())
