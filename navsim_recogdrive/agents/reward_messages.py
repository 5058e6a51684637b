"""What the reward's processes say to each other; without NAVSIM, so that a pool is made at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoringSettings:
    """What a process needs to know to score scenes.

    Attributes:
        metric_cache_path: folder of NAVSIM's metric caches.
        scenes_in_memory: decompressed metric caches to keep, per process.
        scorer: values of NAVSIM's ``PDMScorerConfig`` by name.
    """

    metric_cache_path: str
    scenes_in_memory: int = 128
    scorer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneScores:
    """What became of one scene.

    Attributes:
        rows: [1 + S, G] float64, the score and the sub-scores in the order of ``pdm_batch.SUB_SCORES``; ``None`` if
            the scene could not be scored.
        error: why it could not.
        finished: ``time.monotonic()`` when it was done; one clock for all processes of a machine.
        unusable: whether its metric cache is to blame: unreadable, or made by another NAVSIM version.
    """

    rows: NDArray[np.float64] | None
    error: str | None
    finished: float
    unusable: bool = False
