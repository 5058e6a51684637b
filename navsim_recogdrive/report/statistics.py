"""Intervals and tests for means over scenes, where scenes of one log resemble each other.

- Intervals: the bootstrap over clusters (logs, or scenes where the logs are not known). One resample serves all
  columns, so that differences of runs are paired. Limits are percentiles, moved outward for few clusters (Hesterberg,
  "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015, section 4.6).
- Test: the sign-flip permutation test of a mean difference. If two runs drive equally well, the difference of a cluster
  is as likely positive as negative.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

FEW_CLUSTERS = 20
"""With fewer, an interval is rough, whatever the method."""

_CHUNK_BYTES = 64 << 20
_EXACT_BITS = 14
# Sums of the same numbers in another order differ by rounding.
_TIE = 1e-9


def bootstrap_means(
    values: NDArray[np.float64], clusters: NDArray[np.int64], replicates: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of columns over resampled clusters; every column sees the same resamples.

    Args:
        values: ``[S, K]``, NaN where a scene has no value: it then counts in no mean.
        clusters: ``[S]`` number of each scene's cluster, from 0 without gaps.
        replicates: number ``R`` of resamples.
        rng: source of all randomness.

    Returns:
        ``[R, K]``; NaN where a resample holds no value of the column.
    """
    sums, counts = cluster_sums(values, clusters)
    units = len(sums)
    gaps = ~(counts == counts[:, :1]).all(axis=0)  # columns with the first one's values present share its denominator
    means = np.empty((replicates, values.shape[1]))
    step = max(1, _CHUNK_BYTES // (8 * max(1, units)))
    for begin in range(0, replicates, step):
        size = min(step, replicates - begin)
        drawn = rng.integers(0, units, size=(size, units)) + np.arange(size)[:, None] * units
        weights = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        total = np.repeat(weights @ counts[:, :1], values.shape[1], axis=1)
        if gaps.any():
            total[:, gaps] = weights @ counts[:, gaps]
        with np.errstate(invalid="ignore", divide="ignore"):
            means[begin : begin + size] = np.where(total > 0, (weights @ sums) / total, np.nan)
    return means


def cluster_sums(
    values: NDArray[np.float64], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and numbers of the values in each cluster, NaN left out: twice ``[U, K]``.

    Args:
        values: ``[S, K]``.
        clusters: ``[S]`` from 0 without gaps.
    """
    units = int(clusters.max()) + 1
    sums, counts = np.zeros((units, values.shape[1])), np.zeros((units, values.shape[1]))
    np.add.at(sums, clusters, np.nan_to_num(values))
    np.add.at(counts, clusters, ~np.isnan(values))
    return sums, counts


def percentile_interval(means: NDArray[np.float64], units: int, confidence: float) -> tuple[float, float]:
    """Limits of the expanded percentile interval.

    Args:
        means: ``[R]`` of the resamples; NaN is left out.
        units: number of clusters that were resampled.
        confidence: of the interval, 0.95 for one.

    Returns:
        Lower and upper limit; NaN for fewer than two clusters, from which nothing can be said.
    """
    drawn = means[~np.isnan(means)]
    if units < 2 or not len(drawn):
        return math.nan, math.nan
    reach = math.sqrt(units / (units - 1)) * student_quantile((1 + confidence) / 2, units - 1)
    tail = NormalDist().cdf(-reach)
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return float(low), float(high)


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t (exact for 1 and 2 degrees of freedom, else Cornish-Fisher: within 0.01 for 95 %)."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z, n = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def sign_flip_test(
    differences: NDArray[np.float64], clusters: NDArray[np.int64], flips: int, rng: np.random.Generator
) -> float:
    """Two-sided p-value of the sign-flip permutation test of a mean difference of pairs.

    All differences of a cluster are flipped together. With at most 14 clusters that differ, all flips are made and the
    value is exact; else ``flips`` of them are drawn, and the observed one counts as one more, so that it is never 0.

    Args:
        differences: ``[S]``, NaN where a pair is not whole.
        clusters: ``[S]`` from 0 without gaps.
        flips: how many to draw.
        rng: source of all randomness.

    Returns:
        The p-value; NaN without a pair.
    """
    if np.isnan(differences).all():
        return math.nan
    sums = cluster_sums(differences[:, None], clusters)[0][:, 0]
    sums = sums[np.abs(sums) > _TIE]
    units = len(sums)
    observed = abs(sums.sum()) - _TIE
    if units <= _EXACT_BITS:
        bits = (np.arange(2**units)[:, None] >> np.arange(units)) & 1
        return float((np.abs((2 * bits - 1) @ sums) >= observed).mean())
    reached = 0
    step = max(1, _CHUNK_BYTES // (8 * units))
    for begin in range(0, flips, step):
        size = min(step, flips - begin)
        packed = rng.integers(0, 256, size=(size, (units + 7) // 8), dtype=np.uint8)
        bits = np.unpackbits(packed, axis=1, count=units).astype(np.float64)
        reached += int((np.abs(2 * (bits @ sums) - sums.sum()) >= observed).sum())
    return (reached + 1) / (flips + 1)


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values adjusted for their number (Holm 1979); NaN stays, and does not count.

    Args:
        p_values: ``[K]``.
    """
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * float(p_values[index])))
        adjusted[index] = running
    return adjusted
