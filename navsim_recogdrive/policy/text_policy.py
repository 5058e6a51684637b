"""TextPolicy: the VLM alone writes its trajectory as text, as it was trained to before there is a planner."""

from __future__ import annotations

import logging
import secrets
import string
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S, Observation, PlannedTrajectory
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import VLMConfig, with_vlm_group
from navsim_recogdrive.policy.settings import InvalidSetting, build_settings
from navsim_recogdrive.vlm.answers import parse_trajectory
from navsim_recogdrive.vlm.identity import read_hidden_size

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.generation import GeneratedText

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256
"""Default bound of an answer: eight poses take up to 185 tokens in the published profile, prose the rest."""

_SHOWN = 120
_NAME_LENGTH = 8


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are written.

    Attributes:
        max_new_tokens: most tokens of an answer; bounds a generation that would not end.
    """

    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        found = self.max_new_tokens
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise InvalidSetting(f"generation.max_new_tokens must be a whole number of at least 1, found {found!r}")


@dataclass(frozen=True)
class TextPolicyConfig:
    """All settings of a :class:`TextPolicy`.

    Attributes:
        vlm: which VLM, and how it is run.
        generation: how answers are written.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        hidden_size: width that the VLM must have, so that a 2B agent is not scored with an 8B VLM; ``None`` for any.
    """

    vlm: VLMConfig = field(default_factory=VLMConfig)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    device: str = "auto"
    hidden_size: int | None = None

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> TextPolicyConfig:
        """Build from nested mappings (a resolved YAML); ``vlm_type`` and ``cam_type`` stand beside ``vlm``.

        Raises:
            InvalidSetting: for a name that does not exist, listing those that do, or a value that cannot work.
        """
        parts = with_vlm_group(settings)
        parts["vlm"] = build_settings(VLMConfig, parts["vlm"], "vlm")
        parts["generation"] = build_settings(GenerationSettings, parts.get("generation", {}), "generation")
        return build_settings(cls, parts, "agent")

    def check_vlm(self) -> None:
        """Compare the VLM's hidden size, read from its ``config.json``, with the one that is expected.

        Raises:
            InvalidSetting: if they differ.
            ValueError: if there is no VLM at ``vlm.path`` (``VLMCheckpointError``).
        """
        if self.vlm.path is None:
            return
        found = read_hidden_size(self.vlm.settings())
        if self.hidden_size is not None and found != self.hidden_size:
            agent = {1536: "recogdrive_vlm_2b", 3584: "recogdrive_vlm_8b"}.get(found)
            fix = f"use agent={agent}" if agent else "set agent.hidden_size=null for a VLM of another size"
            raise InvalidSetting(
                f"the VLM in {self.vlm.path} has hidden size {found}, this agent expects {self.hidden_size}: {fix}, or "
                "give another agent.vlm.path (or VLM_PATH)"
            )


@dataclass
class AnswerCounts:
    """What became of the answers so far; ``exact + repaired + fallback == answers``.

    Attributes:
        answers: all of them.
        exact: read as they stand.
        repaired: read after mending.
        fallback: not readable, constant velocity in their place.
        cut_off: not ended by the VLM within the tokens it was allowed (any of the three above).
    """

    answers: int = 0
    exact: int = 0
    repaired: int = 0
    fallback: int = 0
    cut_off: int = 0

    def summary(self, name: str) -> str:
        """One line for the log; ``name`` tells this policy's line from those of others."""
        return (
            f"text planner: {self.answers} answers, {self.exact} exact, {self.repaired} repaired, "
            f"{self.fallback} fallback (constant velocity), {self.cut_off} cut off [{name}]"
        )


class TextPolicy:
    """Plans trajectories by asking the VLM for them in words.

    An answer that holds no plan is replaced by driving on at constant velocity. Each such answer is logged as a
    warning, and when the policy goes, at the latest when the process ends, one line says how many there were:
    ``text planner: 812 answers, 790 exact, ... [kqzvwmtb]``. NAVSIM builds one policy per worker task, so add these
    lines up, number by number, for the counts of a run. The letters at the end are random: within 5 seconds Ray merges
    lines of several workers that differ in words with digits only (``RAY_DEDUP_LOGS``), and counts would be lost.

    Args:
        backbone: the VLM, with its head (``SharedBackbone(..., with_head=True)``).
        generation: how answers are written.

    Attributes:
        counts: what became of the answers so far.
    """

    def __init__(self, backbone: SharedBackbone, generation: GenerationSettings | None = None) -> None:
        self.backbone = backbone
        self.generation = generation or GenerationSettings()
        self.counts = AnswerCounts()
        # Not from the random module, which runs seed alike in every worker.
        name = "".join(secrets.choice(string.ascii_lowercase) for _ in range(_NAME_LENGTH))
        weakref.finalize(self, _log_summary, self.counts, name)

    @classmethod
    def from_pretrained(
        cls,
        vlm: str | Path,
        *,
        device: str = "auto",
        vlm_config: VLMConfig | None = None,
        generation: GenerationSettings | None = None,
    ) -> TextPolicy:
        """A policy from a VLM's folder or hub id.

        Args:
            vlm: folder of the VLM, or id of a hub repository.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            vlm_config: how the VLM is run; its ``path`` is replaced by ``vlm``.
            generation: how answers are written.
        """
        config = VLMConfig(**{**(vlm_config or VLMConfig()).__dict__, "path": str(vlm)})
        return cls(SharedBackbone(config, device, with_head=True), generation)

    def load(self) -> None:
        """Load the VLM now rather than at the first scene, and check that an answer fits into its bound.

        Raises:
            InvalidSetting: if no VLM is configured, or ``max_new_tokens`` does not hold the prompt profile's answer.
            ValueError: if there is no whole VLM (``VLMCheckpointError``).
        """
        from navsim_recogdrive.vlm.generation import longest_answer

        needed = longest_answer(self.backbone.load())
        if self.generation.max_new_tokens < needed:
            raise InvalidSetting(
                f"generation.max_new_tokens={self.generation.max_new_tokens} would cut answers off: {HORIZON_POSES} "
                f"poses take up to {needed} tokens in this prompt profile; set it to at least {needed}"
            )

    def plan_batch(self, observations: Sequence[Observation]) -> list[PlannedTrajectory]:
        """One trajectory for each observation; all are answered together.

        Raises:
            InvalidObservation: if an observation lacks an image.
            VLMOutOfMemory: if the GPU's memory is too small.
        """
        answers = self.backbone.generate(observations, self.generation.max_new_tokens)
        return [
            PlannedTrajectory(self._poses(answer, observation))
            for answer, observation in zip(answers, observations, strict=True)
        ]

    def plan(self, observation: Observation) -> PlannedTrajectory:
        """One trajectory for one observation."""
        return self.plan_batch([observation])[0]

    def _poses(self, answer: GeneratedText, observation: Observation) -> NDArray[np.float32]:
        parsed = parse_trajectory(answer.text)
        self.counts.answers += 1
        self.counts.cut_off += not answer.finished
        if parsed.poses is not None:
            self.counts.exact += parsed.outcome == "exact"
            self.counts.repaired += parsed.outcome == "repaired"
            return parsed.poses
        self.counts.fallback += 1
        shown = answer.text[:_SHOWN] + ("..." if len(answer.text) > _SHOWN else "")
        logger.warning("text planner: no plan in %r (%s); constant velocity instead", shown, parsed.reason)
        return constant_velocity(observation)


def constant_velocity(observation: Observation) -> NDArray[np.float32]:
    """Straight on at the present speed, as NAVSIM's constant velocity agent: ``[8, 3]``, metres and radians."""
    poses = np.zeros((HORIZON_POSES, 3), dtype=np.float32)
    times = POSE_INTERVAL_S * np.arange(1, HORIZON_POSES + 1)
    poses[:, 0] = times * (observation.velocity**2).sum() ** 0.5
    return poses


def _log_summary(counts: AnswerCounts, name: str) -> None:
    if counts.answers:
        logger.info(counts.summary(name))
