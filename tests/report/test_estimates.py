"""Runs side by side: what is compared with what, and the numbers by hand."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from score_files import write_two_stages, write_v1, write_v2

from navsim_recogdrive.report.aligned import AlignedRuns, UnknownLogs, align
from navsim_recogdrive.report.estimates import estimate, most_worsened, worst_scenes
from navsim_recogdrive.report.runs import read_runs
from navsim_recogdrive.report.scene_facts import SceneFacts


def runs_of(
    folder: Path, *values: dict[str, dict[str, float] | None], facts: dict[str, SceneFacts] | None = None
) -> AlignedRuns:
    paths = [str(write_v1(folder / f"r{index}.csv", scores)) for index, scores in enumerate(values)]
    return align(read_runs(paths), facts or {})


def test_scenes_are_matched_by_token(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"a": {"score": 0.1}, "b": {"score": 0.2}}, {"c": {"score": 0.3}, "a": {"score": 0.4}})
    assert runs.tokens == ("a", "b", "c")
    np.testing.assert_array_equal(runs.scores[:, 0], [[0.1, 0.2, np.nan], [0.4, np.nan, 0.3]])
    assert runs.listed.tolist() == [[True, True, False], [True, False, True]]


def test_means_differences_and_changes(tmp_path: Path) -> None:
    first = {"a": {"score": 0.5}, "b": {"score": 1.0}, "c": None, "d": {"score": 0.6}}
    second = {"a": {"score": 0.9}, "b": {"score": 0.8}, "c": {"score": 0.0}, "d": {"score": 0.60001}}
    found = estimate(runs_of(tmp_path, first, second), replicates=200)
    assert [(score.scenes, score.unscored) for score in found.scores] == [(4, 1), (4, 0)]
    assert found.scores[0].means[0].value == pytest.approx(0.7)
    assert found.scores[1].means[0].value == pytest.approx((0.9 + 0.8 + 0.0 + 0.60001) / 4)
    (difference,) = found.differences
    assert (difference.scenes, difference.better, difference.worse) == (3, 1, 1)
    assert difference.means[0].value == pytest.approx((0.4 - 0.2 + 0.00001) / 3)
    assert difference.p_values[0] == 6 / 8  # of the sums +-0.4 +-0.2 +-0.00001 six reach 0.20001
    assert difference.means[1].value == 0.0


def test_equal_runs_differ_by_nothing(tmp_path: Path) -> None:
    scores = {f"{index}": {"score": index / 40} for index in range(40)}
    (difference,) = estimate(runs_of(tmp_path, scores, scores), replicates=200).differences
    assert {asdict(mean)[key] for mean in difference.means for key in ("value", "low", "high")} == {0.0}
    assert set(difference.p_values) == {1.0}


def test_paired_intervals_are_narrower_than_those_of_the_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.9, 60)
    first = {str(index): {"score": float(score)} for index, score in enumerate(base)}
    second = {str(index): {"score": float(score + 0.05 + 0.01 * rng.random())} for index, score in enumerate(base)}
    found = estimate(runs_of(tmp_path, first, second), replicates=300)
    run, pair = found.scores[0].means[0], found.differences[0].means[0]
    assert pair.high - pair.low < (run.high - run.low) / 20
    assert pair.low > 0.05
    assert found.differences[0].adjusted[0] < 0.001


def test_the_seed_decides(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {str(index): {"score": index / 30} for index in range(30)})
    assert estimate(runs, 200, seed=3) == estimate(runs, 200, seed=3)
    assert estimate(runs, 200, seed=3).scores[0].means[0] != estimate(runs, 200, seed=4).scores[0].means[0]


def test_failures_by_kind_and_command(tmp_path: Path) -> None:
    values = {
        "a": {"NC": 0.0, "TTC": 0.0, "score": 0.0},
        "b": {"NC": 0.5, "score": 0.5},
        "c": {"DAC": 0.0, "EP": 0.0, "score": 0.0},
        "d": {"EP": 0.5},
        "e": None,
        "f": {"EP": 0.49},
    }
    commands = {"a": "left", "b": "left", "c": "right", "d": "right", "e": "right", "f": "right"}
    facts = {token: SceneFacts(command=command) for token, command in commands.items()}
    runs = runs_of(tmp_path, values, facts=facts)
    found = {runs.failures[count.kind].key: count for count in estimate(runs, 200).failures}
    assert {key: (count.scenes, count.of) for key, count in found.items()} == {
        "collision": (2, 5), "off_road": (1, 5), "wrong_direction": (0, 5), "time_to_collision": (1, 5),
        "slow": (1, 2), "comfort": (0, 5),
    }  # fmt: skip
    assert [name for name, _ in runs.commands] == ["left", "right"]
    assert found["collision"].by_command == ((2, 2), (0, 3))
    assert found["off_road"].by_command == ((0, 2), (1, 3))
    assert found["slow"].by_command == ((0, 0), (1, 2))
    assert found["collision"].share.value == 0.4
    left, right = estimate(runs, 200).commands
    assert (left.scenes, left.mean.value, right.scenes, right.mean.value) == (2, 0.25, 3, pytest.approx(2 / 3))


def test_progress_that_navsim_lowered_is_no_slowness(tmp_path: Path) -> None:
    """v1.1 multiplies progress by NC and DAC before it writes it; v2 does not."""
    values = {
        "hit": {"NC": 0.0, "EP": 0.0, "score": 0.0},
        "touch": {"NC": 0.5, "EP": 0.3, "score": 0.4},
        "slow": {"EP": 0.3},
    }
    first = runs_of(tmp_path, values)
    np.testing.assert_array_equal(first.plain_progress, [[np.nan, np.nan, 0.3]])
    second = align(read_runs([str(write_v2(tmp_path / "v2.csv", values))]), {})
    np.testing.assert_array_equal(second.plain_progress, [[0.0, 0.3, 0.3]])
    for runs, expected in ((first, [np.nan, np.nan, 1]), (second, [1, 1, 1])):
        kinds = [kind.key for kind in runs.failures]
        np.testing.assert_array_equal(runs.failed[0, kinds.index("slow")], expected)


def test_epdms_tells_more_kinds_apart(tmp_path: Path) -> None:
    path = write_v2(tmp_path / "a.csv", {"a": {"TLC": 0.0, "LK": 0.0, "EC": 0.0, "HC": 0.0, "score": 0.0}, "b": {}})
    runs = align(read_runs([str(path)]), {})
    failed = {runs.failures[count.kind].key for count in estimate(runs, 200).failures if count.scenes == 1}
    assert failed == {"red_light", "lane", "two_frame_comfort", "history_comfort"}


def test_stages_are_averaged_apart(tmp_path: Path) -> None:
    first = write_two_stages(tmp_path / "a.csv", {"a": {"score": 0.8}}, {"s": {"score": 0.4}, "t": {"score": 0.6}}, 0.4)
    second = write_two_stages(
        tmp_path / "b.csv", {"a": {"score": 0.9}}, {"s": {"score": 0.2}, "t": {"score": 0.2}}, 0.2
    )
    found = estimate(align(read_runs([str(first), str(second)]), {}), replicates=200)
    means = [(score.run, score.part, score.scenes, round(score.means[0].value, 6)) for score in found.scores]
    assert means == [
        (0, "stage one", 1, 0.8),
        (0, "stage two", 2, 0.5),
        (1, "stage one", 1, 0.9),
        (1, "stage two", 2, 0.2),
    ]
    assert [round(difference.means[0].value, 6) for difference in found.differences] == [0.1, -0.3]


def test_failures_and_commands_of_the_stages_apart(tmp_path: Path) -> None:
    second = {"s": {"NC": 0.0, "score": 0.0}, "t": {"score": 0.6}, "u": {"NC": 0.0, "score": 0.3}}
    path = write_two_stages(tmp_path / "a.csv", {"a": {"score": 0.8}, "b": {"DAC": 0.0, "score": 0.0}}, second, 0.4)
    facts = {token: SceneFacts(command="right" if token in "bu" else "left") for token in "abstu"}
    found = estimate(align(read_runs([str(path)]), facts), replicates=200)
    counts = {(count.part, count.kind): (count.scenes, count.of, count.by_command) for count in found.failures}
    assert counts["stage one", 0] == (0, 2, ((0, 1), (0, 1)))
    assert counts["stage two", 0] == (2, 3, ((1, 2), (1, 1)))
    assert counts["stage one", 1] == (1, 2, ((0, 1), (1, 1)))
    assert counts["stage two", 1] == (0, 3, ((0, 2), (0, 1)))
    assert [(score.part, score.command, score.scenes, score.mean.value) for score in found.commands] == [
        ("stage one", "left", 1, 0.8), ("stage one", "right", 1, 0.0),
        ("stage two", "left", 2, 0.3), ("stage two", "right", 1, 0.3),
    ]  # fmt: skip


def test_logs_are_clusters_where_they_are_known(tmp_path: Path) -> None:
    scores = {str(index): {"score": (index % 7) / 7} for index in range(42)}
    logs = {token: SceneFacts(log_name=f"log {int(token) % 7}") for token in scores}
    path = [str(write_v1(tmp_path / "a.csv", scores))]
    runs = align(read_runs(path), logs)
    assert (runs.cluster_kind, runs.cluster_count, runs.cluster_reason) == ("log", 7, "")
    by_log = estimate(runs, 400).scores[0].means[0]
    asked = align(read_runs(path), logs, "scene")
    assert (asked.cluster_kind, asked.cluster_reason) == ("scene", "--cluster scene asks for it")
    by_scene = estimate(asked, 400).scores[0].means[0]
    assert by_log.value == by_scene.value
    assert by_log.high - by_log.low > 2 * (by_scene.high - by_scene.low)  # all scenes of a log are alike here
    del logs["0"]
    missing = align(read_runs(path), logs)
    assert (missing.cluster_kind, missing.cluster_count) == ("scene", 42)
    assert missing.cluster_reason == "the log of 1 of 42 scenes is not known"
    with pytest.raises(UnknownLogs, match="the log of 1 of 42 scenes is not known, 0 for one"):
        align(read_runs(path), logs, "log")
    few = {token: SceneFacts(log_name=f"log {int(token) % 5}") for token in scores}
    assert (align(read_runs(path), few).cluster_kind, align(read_runs(path), few).cluster_reason) == (
        "scene",
        "there are only 5 logs",
    )
    one = {token: SceneFacts(log_name="log") for token in scores}
    assert align(read_runs(path), one).cluster_reason == "there is only 1 log"
    assert align(read_runs(path), few, "log").cluster_count == 5


def test_the_baseline_comes_first(tmp_path: Path) -> None:
    paths = [
        str(write_v1(tmp_path / f"{name}.csv", {"a": {"score": value}})) for name, value in (("x", 0.2), ("y", 0.6))
    ]
    runs = align(read_runs(paths), {}, baseline="y")
    assert runs.names == ["y", "x"]
    assert estimate(runs, 200).differences[0].means[0].value == pytest.approx(-0.4)
    with pytest.raises(ValueError, match="no run is called 'z', to be the baseline; the runs are x, y"):
        align(read_runs(paths), {}, baseline="z")


def test_worst_scenes(tmp_path: Path) -> None:
    first = {"d": {"score": 0.0, "NC": 0.0}, "c": {"score": 0.0, "NC": 0.0, "TTC": 0.0}, "b": {"score": 0.3}, "a": {},
             "e": None}  # fmt: skip
    second = {"d": {}, "c": {"score": 0.0}, "b": {"score": 0.2}, "a": {"score": 0.1}, "e": {}}
    runs = runs_of(tmp_path, first, second)
    assert [runs.tokens[scene] for scene in worst_scenes(runs, 0, 9)] == ["c", "d", "b", "a"]
    assert [runs.tokens[scene] for scene in most_worsened(runs, 1, 9)] == ["a", "b"]
    assert most_worsened(runs, 1, 1) == [runs.tokens.index("a")]


def test_ties_are_not_decided_by_what_has_no_weight(tmp_path: Path) -> None:
    """DDC has weight 0 in v1.1: of equal scores the first token comes first; in v2 it is a failure like others."""
    values = {"a": {"TTC": 0.0, "score": 0.0}, "b": {"TTC": 0.0, "DDC": 0.0, "score": 0.0}}
    runs = runs_of(tmp_path, values)
    assert [runs.tokens[scene] for scene in worst_scenes(runs, 0, 2)] == ["a", "b"]
    assert [kind.label for kind in runs.failures if not kind.weighs] == ["wrong driving direction (weight 0)"]
    runs = align(read_runs([str(write_v2(tmp_path / "v2.csv", values))]), {})
    assert [runs.tokens[scene] for scene in worst_scenes(runs, 0, 2)] == ["b", "a"]
    assert all(kind.weighs for kind in runs.failures)


def test_no_interval_from_one_scene(tmp_path: Path) -> None:
    found = estimate(runs_of(tmp_path, {"a": {"score": 0.5}, "b": None}), replicates=200)
    assert found.scores[0].means[0].value == 0.5
    assert math.isnan(found.scores[0].means[0].low)
