"""What the doctor was asked: for which stage, agent, files and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from navsim_recogdrive.doctor.findings import ERROR, WARNING, Finding

STAGES = ("cache", "train", "rl", "evaluate", "submit", "pretraining")
"""Hidden-state caching, imitation, reinforcement learning, PDM scoring, submission, and fine-tuning of the VLM."""

TRAINING_SPLIT, TEST_SPLIT, CHALLENGE_SPLIT = "navtrain", "navtest", "private_test_hard_two_stage"

OVERRIDABLE = ("agent.", "agent/", "dataloader.params.")
"""Beginnings of the runner's Hydra overrides that the doctor takes, after an optional ``+``, ``++`` or ``~``."""


@dataclass(frozen=True)
class Request:
    """Everything the checks may depend on but the machine itself.

    Attributes:
        stage: one of :data:`STAGES`; ``None``: all of them, and what only some of them need is a warning.
        agent: name of the agent's config.
        overrides: Hydra overrides of the runner, see :data:`OVERRIDABLE`.
        vlm: folder or hub repository of the VLM.
        checkpoint: planner weights to evaluate or start from.
        cache: folder of cached hidden states or image tiles.
        metric_cache: folder of metric caches.
        split: NAVSIM's ``train_test_split``; ``None``: the stage's, see
            :attr:`~navsim_recogdrive.doctor.context.Context.split`.
        environment: environment variables.
        time_limit_s: after which an import or another step in the separate process is given up.
    """

    stage: str | None = None
    agent: str = "recogdrive_2b"
    overrides: tuple[str, ...] = ()
    vlm: str | None = None
    checkpoint: Path | None = None
    cache: Path | None = None
    metric_cache: Path | None = None
    split: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    time_limit_s: float = 120.0

    def wants(self, *stages: str) -> bool:
        """Whether something that ``stages`` need is to be looked at."""
        return self.stage is None or self.stage in stages

    def missing(self, check: str, found: str, fix: str, *stages: str) -> Finding:
        """A finding about something that ``stages`` need: an error if one of them was asked for, else a warning."""
        return Finding(check, ERROR if self.stage in stages else WARNING, found, fix)

    def override(self, name: str) -> str | None:
        """Value of a setting among the overrides, the last one; ``None`` where there is none or it is ``null``."""
        values = [value for one in self.overrides for key, _, value in [one.lstrip("+").partition("=")] if key == name]
        value = values[-1].strip("\"'") if values else ""
        return None if value in ("", "null") else value

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the JSON report; the environment is left out."""
        paths = {"checkpoint": self.checkpoint, "cache": self.cache, "metric_cache": self.metric_cache}
        return {
            "stage": self.stage,
            "agent": self.agent,
            "overrides": list(self.overrides),
            "vlm": self.vlm,
            **{name: None if path is None else str(path) for name, path in paths.items()},
            "split": self.split,
        }
