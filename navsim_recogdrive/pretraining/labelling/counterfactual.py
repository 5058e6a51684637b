"""What would happen if the ego did something else: hypothetical drives against the annotated futures of others."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.pretraining.ego_path import EGO_CENTRE_M, EGO_LENGTH_M, EGO_WIDTH_M, EgoPath
from navsim_recogdrive.pretraining.facts import AgentFacts, SceneFacts, box_gap
from navsim_recogdrive.pretraining.records import PRESENT

STANDING_MPS = 1.0
"""An ego below this stands: all it can do otherwise is to drive off."""

ACCELERATION_MPS2, BRAKING_MPS2 = 2.0, 6.0
"""Of a brisk start, and of an emergency stop."""

SWERVE_M, SWERVE_S = 3.5, 3.0
"""A lane's width, and the time that changing to it takes."""

CLOSE_M = 1.0
"""Passing nearer than this is close."""


@dataclass(frozen=True)
class Action:
    """Something that the ego could do.

    Attributes:
        name: short, for tests and logs.
        words: completes "if the ego vehicle ...".
        acceleration_mps2: along the way.
        aside_m: sideways offset that it reaches, positive to the left.
        excluded: what the expert must not be doing: speeds and paths of
            :mod:`~navsim_recogdrive.pretraining.behaviour`.
        standing: whether it suits an ego that stands.
    """

    name: str
    words: str
    acceleration_mps2: float
    aside_m: float
    excluded: tuple[str, ...]
    standing: bool


ACTIONS = (
    Action("keep", "kept its present speed and its way", 0.0, 0.0, ("keep",), False),
    Action("accelerate", "accelerated briskly along its way", ACCELERATION_MPS2, 0.0, ("accelerate",), False),
    Action("brake", "braked to a stop as hard as it can", -BRAKING_MPS2, 0.0, ("decelerate", "stop"), False),
    Action("left", "moved one lane to the left now", 0.0, SWERVE_M, ("lane change left", "turn left"), False),
    Action("right", "moved one lane to the right now", 0.0, -SWERVE_M, ("lane change right", "turn right"), False),
    Action("drive off", "drove off now", ACCELERATION_MPS2, 0.0, ("accelerate",), True),
)
"""All of them; which one is asked about depends on the scene's token."""


@dataclass(frozen=True)
class Outcome:
    """What the annotated futures say about an action, if nobody reacts.

    Attributes:
        agent: who comes nearest; ``None`` where nobody is near at all.
        gap_m: how near, 0 for a collision.
        time_s: when.
    """

    agent: AgentFacts | None
    gap_m: float
    time_s: float

    @property
    def words(self) -> str:
        """``collision``, ``close`` or ``clear``."""
        return "collision" if self.gap_m <= 0.0 else "close" if self.gap_m <= CLOSE_M else "clear"


def choose_action(facts: SceneFacts) -> Action | None:
    """One that the expert does not take, always the same for a scene; ``None`` if there is none or no future."""
    if facts.ego is None:
        return None
    standing = float(np.hypot(*facts.record.velocity)) < STANDING_MPS
    taken = (facts.ego.speed, facts.ego.path)
    possible = [one for one in ACTIONS if one.standing == standing and not set(one.excluded) & set(taken)]
    if not possible:
        return None
    draw = hashlib.sha256(f"counterfactual {facts.record.token}".encode()).digest()
    return possible[int.from_bytes(draw[:8], "big") % len(possible)]


def drive(facts: SceneFacts, action: Action) -> NDArray[np.float64]:
    """The hypothetical poses ``[8, 3]`` (x, y, heading) of the rear axle at 0.5, ..., 4.0 s, ego frame.

    It follows the expert's way, straight on beyond its end, at constant acceleration until it stands.
    """
    speed = float(np.hypot(*facts.record.velocity))
    times = POSE_INTERVAL_S * np.arange(1, HORIZON_POSES + 1)
    acceleration = action.acceleration_mps2
    moving = np.minimum(times, -speed / acceleration) if acceleration < 0 else times
    travelled = np.maximum.accumulate(speed * moving + acceleration * moving**2 / 2)
    points = EgoPath.of(facts.record).points
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points[:, :2], axis=0).T))])
    poses = np.stack([np.interp(travelled, arc, points[:, column]) for column in range(3)], axis=1)
    beyond = np.maximum(travelled - arc[-1], 0.0)
    poses[:, 0] += beyond * np.cos(poses[:, 2])
    poses[:, 1] += beyond * np.sin(poses[:, 2])
    share = np.clip(times / SWERVE_S, 0.0, 1.0)
    aside = action.aside_m * share**2 * (3 - 2 * share)  # starts and ends along the way
    poses[:, 0] -= aside * np.sin(poses[:, 2])
    poses[:, 1] += aside * np.cos(poses[:, 2])
    slope = action.aside_m * 6 * share * (1 - share) / SWERVE_S
    poses[:, 2] += np.arctan2(slope, max(speed, STANDING_MPS))
    return poses


def outcome(facts: SceneFacts, action: Action) -> Outcome:
    """Who comes nearest to the hypothetical drive within 4 s, and how near; the earliest collision if there is one."""
    nearest = Outcome(None, math.inf, POSE_INTERVAL_S * HORIZON_POSES)
    for step, (x, y, heading) in enumerate(drive(facts, action).tolist()):
        centre = np.array([x + EGO_CENTRE_M * math.cos(heading), y + EGO_CENTRE_M * math.sin(heading), heading])
        for agent in facts.agents:
            pose = agent.track.poses[PRESENT + 1 + step]
            if not np.isfinite(pose).all() or agent.gap_m <= 0.0:
                continue  # gone, or a box that touches the ego's now: then nothing can be said of it
            length, width, _ = agent.track.size
            if math.hypot(pose[0] - centre[0], pose[1] - centre[1]) - math.hypot(length, width) / 2 > 20.0:
                continue
            gap = box_gap(centre, (EGO_LENGTH_M, EGO_WIDTH_M), pose, (length, width))
            if gap < nearest.gap_m:
                nearest = Outcome(agent, gap, POSE_INTERVAL_S * (step + 1))
        if nearest.gap_m <= 0.0:
            break
    return nearest
