"""What is true of a scene: computed from its record, for the answers to questions and for judging them.

Positions are those of the annotated boxes; "now" is the present frame. Words for behaviours are explained in
:mod:`navsim_recogdrive.pretraining.behaviour`, being in the ego's way in
:mod:`navsim_recogdrive.pretraining.ego_path`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.pretraining.behaviour import Behaviour, behaviour_of
from navsim_recogdrive.pretraining.ego_path import EGO_CENTRE_M, EGO_LENGTH_M, EGO_WIDTH_M, EgoPath, PathConflict
from navsim_recogdrive.pretraining.projection import ImageBox, image_box
from navsim_recogdrive.pretraining.records import AgentTrack, SceneRecord

VULNERABLE = ("pedestrian", "bicycle")
"""Categories of vulnerable road users."""

ROAD_USERS = ("vehicle", *VULNERABLE)
"""Categories that move by themselves."""

DENSITY_RADIUS_M = 50.0
"""Road users within this distance make the traffic."""

Density = Literal["empty", "light", "moderate", "dense"]

DENSITY_LIMITS: tuple[tuple[int, Density], ...] = ((0, "empty"), (8, "light"), (20, "moderate"))
"""Most road users nearby for each word; more are dense."""

SMALLEST_PX = 10
"""Boxes in the image below this height are too small to be asked for."""

LEAST_INSIDE = 0.3
MOST_HIDDEN = 0.7
"""Boxes with less of them in the image, or more of them behind nearer ones, are not asked for."""

_SECTORS = ("ahead", "ahead left", "left", "behind left", "behind", "behind right", "right", "ahead right")


@dataclass(frozen=True)
class AgentFacts:
    """What is true of one annotated object.

    Attributes:
        track: its annotation.
        gap_m: shortest distance between its box and the ego's, seen from above; 0 where they overlap.
        ahead_m: its centre before (positive) or behind the ego's rear axle.
        left_m: its centre to the left (positive) or right of the ego's axis.
        bearing_rad: direction from the ego's centre to its centre, 0 ahead, positive to the left.
        speed_mps: annotated speed now.
        behaviour: what it does; ``None`` for what does not move by itself, and where too little future is annotated.
        conflict: when it is in the ego's way, if ever.
        box: in the front camera's image; ``None`` if it is not there.
        hidden: share of ``box`` that is covered by boxes of nearer objects, 0..1; too high rather than too low, since
            upright boxes are larger than what they are round.
    """

    track: AgentTrack
    gap_m: float
    ahead_m: float
    left_m: float
    bearing_rad: float
    speed_mps: float
    behaviour: Behaviour | None
    conflict: PathConflict | None
    box: ImageBox | None
    hidden: float

    @property
    def category(self) -> str:
        """The annotation's category."""
        return self.track.category

    @property
    def where(self) -> str:
        """The direction in words, eighths of a circle: ahead, ahead left, left, behind left, ..."""
        return sector(self.bearing_rad)

    @property
    def visible(self) -> bool:
        """Whether the front image shows enough of it to be asked for; see the limits of this module."""
        box = self.box
        return (
            box is not None and box.height >= SMALLEST_PX and box.inside >= LEAST_INSIDE and self.hidden <= MOST_HIDDEN
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; metres and seconds rounded to 1 decimal, the box in whole pixels."""
        return {
            "track_token": self.track.track_token,
            "category": self.category,
            "where": self.where,
            "gap_m": round(self.gap_m, 1),
            "ahead_m": round(self.ahead_m, 1),
            "left_m": round(self.left_m, 1),
            "speed_mps": round(self.speed_mps, 1),
            "behaviour": None if self.behaviour is None else self.behaviour.to_dict(),
            "in_path_from_s": None if self.conflict is None else self.conflict.time_s,
            "path_gap_m": None if self.conflict is None else round(self.conflict.gap_m, 1),
            "box": None if self.box is None else list(self.box.xyxy),
            "visible": self.visible,
        }


@dataclass(frozen=True)
class SceneFacts:
    """What is true of one scene.

    Attributes:
        record: what it is computed from.
        ego: what the expert does; ``None`` without a future.
        agents: all that is annotated at present, the nearest first.
    """

    record: SceneRecord
    ego: Behaviour | None
    agents: tuple[AgentFacts, ...]

    @staticmethod
    def of(record: SceneRecord) -> SceneFacts:
        """Compute the facts of a record; some tens of milliseconds."""
        path = EgoPath.of(record)
        boxes = [image_box(agent, record.front) for agent in record.agents]
        agents = [_agent_facts(agent, box, boxes, path) for agent, box in zip(record.agents, boxes, strict=True)]
        agents.sort(key=lambda agent: (agent.gap_m, agent.track.track_token))
        return SceneFacts(record, _ego_behaviour(record), tuple(agents))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Objects within 50 m, by category, most frequent first."""
        near = Counter(agent.category for agent in self.agents if agent.gap_m <= DENSITY_RADIUS_M)
        return dict(sorted(near.items(), key=lambda item: (-item[1], item[0])))

    @property
    def density(self) -> Density:
        """The traffic in a word, by the road users within 50 m, parked ones included."""
        users = sum(self.counts.get(category, 0) for category in ROAD_USERS)
        return next((word for limit, word in DENSITY_LIMITS if users <= limit), "dense")

    @property
    def vulnerable_road_users(self) -> tuple[AgentFacts, ...]:
        """Pedestrians and cyclists that the front image shows, the nearest first; each has a ``box``."""
        return tuple(agent for agent in self.agents if agent.category in VULNERABLE and agent.visible)

    @property
    def nearest_in_path(self) -> AgentFacts | None:
        """Who stands in the ego's way now, nearest to its front."""
        standing = [(one.conflict.gap_m, one) for one in self.agents if one.conflict and one.conflict.time_s == 0.0]
        return min(standing, key=lambda pair: pair[0])[1] if standing else None

    @property
    def most_influential(self) -> AgentFacts | None:
        """Who the ego meets in its way first: now before later, near before far; ``None`` if the way stays free."""
        met = [((one.conflict.time_s, one.conflict.gap_m), one) for one in self.agents if one.conflict]
        return min(met, key=lambda pair: pair[0])[1] if met else None

    def to_dict(self, most_agents: int | None = None) -> dict[str, Any]:
        """As JSON has it, for prompts and for judging answers.

        Args:
            most_agents: leave out agents beyond the nearest so many; ``None`` keeps all.
        """
        influential, in_path = self.most_influential, self.nearest_in_path
        return {
            "token": self.record.token,
            "command": self.record.command,
            "speed_mps": round(float(np.hypot(*self.record.velocity)), 1),
            "ego": None if self.ego is None else self.ego.to_dict(),
            "density": self.density,
            "counts": self.counts,
            "lights": dict(zip(("red", "not_red"), self.record.lights, strict=True)),
            "agents": [agent.to_dict() for agent in self.agents[:most_agents]],
            "nearest_in_path": None if in_path is None else in_path.track.track_token,
            "most_influential": None if influential is None else influential.track.track_token,
        }


def sector(bearing: float) -> str:
    """A direction (radians, 0 ahead, positive to the left) in words, eighths of a circle."""
    return _SECTORS[round(bearing / (math.pi / 4)) % len(_SECTORS)]


def _ego_behaviour(record: SceneRecord) -> Behaviour | None:
    if record.future_poses is None:
        return None
    return behaviour_of(np.concatenate([record.past_poses, record.future_poses]), record.lanes)


def _behaviour(agent: AgentTrack) -> Behaviour | None:
    return behaviour_of(agent.poses, agent.lanes, heading_from_motion=agent.category == "pedestrian")


def _agent_facts(
    agent: AgentTrack, box: ImageBox | None, boxes: Sequence[ImageBox | None], path: EgoPath
) -> AgentFacts:
    x, y, _ = agent.present.tolist()
    moves = agent.category in ROAD_USERS
    ego = np.array([EGO_CENTRE_M, 0.0, 0.0])
    return AgentFacts(
        track=agent,
        gap_m=box_gap(ego, (EGO_LENGTH_M, EGO_WIDTH_M), agent.present, agent.size[:2]),
        ahead_m=x,
        left_m=y,
        bearing_rad=math.atan2(y, x - EGO_CENTRE_M),
        speed_mps=float(np.hypot(*agent.velocity)),
        behaviour=_behaviour(agent) if moves else None,
        conflict=path.conflict(agent),
        box=box,
        hidden=0.0 if box is None else _hidden(box, boxes),
    )


def box_gap(
    first: NDArray[np.float64],
    first_size: tuple[float, float],
    second: NDArray[np.float64],
    second_size: tuple[float, float],
) -> float:
    """Shortest distance between two oriented rectangles, 0 where they overlap.

    Args:
        first: ``[3]`` (x, y, heading) of its centre.
        first_size: length and width.
        second: ``[3]`` likewise, in the same frame.
        second_size: likewise.
    """
    # Of two rectangles that do not overlap a corner is nearest; of two that do, an edge or a corner is inside.
    gap = math.inf
    for (pose, size), (other, other_size) in (
        ((first, first_size), (second, second_size)),
        ((second, second_size), (first, first_size)),
    ):
        outline = _outline(other, other_size) - pose[:2]
        cos, sin = math.cos(pose[2]), math.sin(pose[2])
        local = np.abs(np.stack([outline @ (cos, sin), outline @ (-sin, cos)], axis=1)) - np.array(size) / 2
        gap = min(gap, float(np.hypot(*np.maximum(local, 0.0).T).min()))
    return gap


def _outline(pose: NDArray[np.float64], size: tuple[float, float]) -> NDArray[np.float64]:
    """Points ``[64, 2]`` round a rectangle, its corners among them."""
    side = np.linspace(-0.5, 0.5, 17)[:-1]
    half = np.full_like(side, 0.5)
    unit = np.concatenate(
        [np.stack(pair, axis=1) for pair in ((side, -half), (half, side), (-side, half), (-half, -side))]
    )
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    along, across = (unit * size).T
    return np.stack([pose[0] + along * cos - across * sin, pose[1] + along * sin + across * cos], axis=1)


def _hidden(box: ImageBox, boxes: Sequence[ImageBox | None]) -> float:
    """Share of a box's points, 9 by 9 of them, that lie in boxes of nearer objects."""
    spread = (np.arange(9) + 0.5) / 9
    x = box.left + spread * box.width
    y = box.top + spread * box.height
    covered = np.zeros((9, 9), dtype=bool)
    for other in boxes:
        if other is None or other.depth_m >= box.depth_m:
            continue
        columns = (other.left <= x) & (x <= other.right)
        covered |= ((other.top <= y) & (y <= other.bottom))[:, None] & columns[None]
    return float(covered.mean())
