"""Intervals and tests against values by hand, and their coverage on data of which the truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_recogdrive.report.statistics import (
    bootstrap_means,
    cluster_sums,
    holm,
    percentile_interval,
    sign_flip_test,
    student_quantile,
)

EACH = np.arange


def test_two_scenes_resample_to_three_means() -> None:
    means = bootstrap_means(np.array([[0.0], [1.0]]), EACH(2), 20_000, np.random.default_rng(0))[:, 0]
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / len(means), [0.25, 0.5, 0.25], atol=0.015)


def test_clusters_are_drawn_whole() -> None:
    """Clusters {0, 0, 0} and {1}: two of the four pairs hold both, and their mean is 1/4, not 1/2."""
    values, clusters = np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([0, 0, 0, 1])
    means = bootstrap_means(values, clusters, 20_000, np.random.default_rng(0))[:, 0]
    found, counts = np.unique(means, return_counts=True)
    assert found.tolist() == [0.0, 0.25, 1.0]
    np.testing.assert_allclose(counts / len(means), [0.25, 0.5, 0.25], atol=0.015)


def test_missing_values_are_in_no_mean_and_resamples_are_shared() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((30, 1))
    gap = np.where(EACH(30)[:, None] < 10, np.nan, values)
    means = bootstrap_means(np.hstack([values, 1 - values, gap, gap + 1]), EACH(30), 300, rng)
    np.testing.assert_allclose(means[:, 0] + means[:, 1], 1.0)  # paired: one resample for all columns
    np.testing.assert_allclose(means[:, 3] - means[:, 2], 1.0)
    assert abs(means[:, 2].mean() - values[10:].mean()) < 0.02


def test_a_resample_without_a_value_is_left_out() -> None:
    means = bootstrap_means(np.array([[1.0], [np.nan]]), EACH(2), 1000, np.random.default_rng(0))[:, 0]
    assert 0.2 < np.isnan(means).mean() < 0.3
    assert set(means[~np.isnan(means)]) == {1.0}


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 2))
    whole = bootstrap_means(values, EACH(50), 64, np.random.default_rng(5))
    monkeypatch.setattr("navsim_recogdrive.report.statistics._CHUNK_BYTES", 8 * 50 * 7)
    np.testing.assert_allclose(bootstrap_means(values, EACH(50), 64, np.random.default_rng(5)), whole)


def test_cluster_sums() -> None:
    sums, counts = cluster_sums(np.array([[1.0], [2.0], [np.nan], [4.0]]), np.array([1, 0, 1, 1]))
    assert sums.tolist() == [[2.0], [5.0]]
    assert counts.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (100, 1.9840)]
)
def test_student_quantile(freedom: int, quantile: float) -> None:
    """Against the printed tables, 97.5 %."""
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=0.005)


def test_interval_is_wider_for_few_clusters() -> None:
    means = np.linspace(0, 1, 10_001)
    low, high = percentile_interval(means, 1_000_000, 0.95)
    assert (low, high) == (pytest.approx(0.025, abs=1e-3), pytest.approx(0.975, abs=1e-3))
    assert percentile_interval(means, 8, 0.95)[0] < 0.01
    assert all(math.isnan(limit) for limit in percentile_interval(means, 1, 0.95))
    assert all(math.isnan(limit) for limit in percentile_interval(np.array([np.nan]), 5, 0.95))


def test_sign_flips_by_hand() -> None:
    """Of the 8 sums of +-1 +-2 +-3, two reach 6, four reach 4."""
    rng = np.random.default_rng(0)
    assert sign_flip_test(np.array([1.0, 2.0, 3.0]), EACH(3), 100, rng) == 2 / 8
    assert sign_flip_test(np.array([-1.0, 2.0, 3.0]), EACH(3), 100, rng) == 4 / 8
    assert sign_flip_test(np.array([0.0, 0.0]), EACH(2), 100, rng) == 1.0
    assert sign_flip_test(np.array([1.0, 2.0, np.nan, 3.0]), EACH(4), 100, rng) == 2 / 8
    assert sign_flip_test(np.array([1.0, 2.0, 3.0]), np.array([0, 0, 0]), 100, rng) == 1.0  # one cluster says nothing
    assert math.isnan(sign_flip_test(np.array([np.nan]), EACH(1), 100, rng))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_exact_sign_flips_equal_all_flips(values: list[int]) -> None:
    differences = np.array(values, dtype=np.float64)
    flips = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
             for signs in itertools.product((-1, 1), repeat=len(values))]  # fmt: skip
    expected = np.mean([flip >= abs(sum(values)) for flip in flips])
    found = sign_flip_test(differences, EACH(len(values)), 10, np.random.default_rng(0))
    assert found == pytest.approx(expected)


def test_drawn_sign_flips_agree_with_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(3).normal(0.35, 1, 12)
    exact = sign_flip_test(differences, EACH(12), 10, np.random.default_rng(0))
    monkeypatch.setattr("navsim_recogdrive.report.statistics._EXACT_BITS", 3)
    drawn = sign_flip_test(differences, EACH(12), 40_000, np.random.default_rng(0))
    assert 0.01 < exact < 0.9
    assert drawn == pytest.approx(exact, abs=0.01)


def test_holm_by_hand() -> None:
    found = holm(np.array([0.04, 0.01, np.nan, 0.03]))
    np.testing.assert_allclose(found, [0.06, 0.03, np.nan, 0.06])
    np.testing.assert_array_equal(holm(np.array([0.9, 0.8])), [1.0, 1.0])


@pytest.mark.parametrize(("logs", "per_log"), [(10, 8), (60, 1)])
def test_intervals_cover_the_truth(logs: int, per_log: int) -> None:
    """Scores of scenes that share a part with their log, skewed and in [0, 1] as PDM scores are; the mean is 0.75."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(EACH(logs), per_log)
    covered, naive, tries = 0, 0, 400
    for _ in range(tries):
        scores = 0.5 * rng.beta(3, 1, logs)[clusters] + 0.5 * rng.beta(3, 1, logs * per_log)
        means = bootstrap_means(scores[:, None], clusters, 300, rng)[:, 0]
        low, high = percentile_interval(means, logs, 0.95)
        covered += low <= 0.75 <= high
        means = bootstrap_means(scores[:, None], EACH(len(scores)), 300, rng)[:, 0]
        low, high = percentile_interval(means, len(scores), 0.95)
        naive += low <= 0.75 <= high
    assert 0.91 <= covered / tries <= 0.985
    if per_log > 1:
        assert naive / tries < 0.75  # what taking the scenes as independent would do


def test_sign_flips_hold_their_level() -> None:
    """Where nothing differs, one test in twenty says 0.05 or less."""
    rng = np.random.default_rng(11)
    p_values = [sign_flip_test(rng.normal(0, 1, 40), np.repeat(EACH(20), 2), 200, rng) for _ in range(600)]
    assert 0.025 <= np.mean(np.array(p_values) <= 0.05) <= 0.08


def test_sign_flips_of_few_logs_scene_by_scene_do_not() -> None:
    """Three logs of 27 scenes, each log better or worse as a whole by chance: why such p-values get no colour."""
    rng = np.random.default_rng(11)
    logs = np.repeat(EACH(3), 27)
    p_values = [
        sign_flip_test(rng.normal(0, 1, 3)[logs] + rng.normal(0, 2, 81), EACH(81), 200, rng) for _ in range(300)
    ]
    assert 0.3 <= np.mean(np.array(p_values) < 0.05) <= 0.6
