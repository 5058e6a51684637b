"""What a road user does within 4 s, in words, from where it is annotated: the truth that answers are judged by.

Speed and turns are told from positions and headings, lane changes from the lanes of the map, which also tell turns from
bends: on a road that winds, geometry alone calls bends lane changes more often than not. Speeds compare now with the
end of the horizon, so a dip in between goes unseen; a turn that has not yet turned by 25 degrees at the end of the
horizon counts as straight.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsim_recogdrive.observation import POSE_INTERVAL_S
from navsim_recogdrive.pretraining.records import PRESENT, TRACK_TIMES_S, Lanes

Speed = Literal["still", "stop", "decelerate", "keep", "accelerate"]
Path = Literal["straight", "lane change left", "lane change right", "turn left", "turn right", "reverse"]

SHORTEST_S = 2.0
"""Least future that a behaviour is told from."""

STILL_M = 0.5
"""Who gets nowhere farther than this from where it is now is still; annotated boxes of parked cars tremble by less."""

STOPPED_MPS = 0.5
"""Who ends below this, and is faster now, stops."""

CHANGE_MPS, CHANGE_SHARE = 1.0, 0.15
"""Accelerating and decelerating change the speed by more than this, and by more than this share of the present one."""

MOVED_M = 2.0
"""Who travels less has no path."""

TURN_RAD = 0.44
"""A turn changes the heading by more than 25 degrees..."""

TURN_RADIUS_M = 40.0
"""...and, somewhere for a second and a half, on a radius below this; otherwise the road bends. Where lanes are known,
only what is turned in junctions and off the lanes counts."""

LANE_CHANGE_M = 0.75
"""A lane change leaves a lane for one beside it, and moves this far across them besides the step over the line."""

_SHARPEST_STEPS = 3


@dataclass(frozen=True)
class Behaviour:
    """What somebody does from now on.

    Attributes:
        speed: how the speed at the end compares with that of now.
        path: where it goes; ``None`` for less than 2 m of way.
        start_mps: speed now.
        end_mps: speed at the end.
        travelled_m: length of the way.
        turned_rad: change of heading, positive to the left.
        aside_m: sideways offset at the end, from the line of the present heading, positive to the left.
        horizon_s: how much future was known: 4 s, or less where the annotation ends.
    """

    speed: Speed
    path: Path | None
    start_mps: float
    end_mps: float
    travelled_m: float
    turned_rad: float
    aside_m: float
    horizon_s: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; numbers rounded to 2 decimals."""
        return {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(self).items()}


def behaviour_of(poses: ArrayLike, lanes: Lanes = (), heading_from_motion: bool = False) -> Behaviour | None:
    """Tell what somebody does from its poses.

    Args:
        poses: ``[12, 3]`` (x, y, heading) at :data:`~navsim_recogdrive.pretraining.records.TRACK_TIMES_S`, in any one
            frame that does not move, metres and radians; rows of nan where unknown. Gaps are bridged straight.
        lanes: where on the map it is at these times; without them no lane change is told.
        heading_from_motion: where headings say little, as pedestrians' do, take them from the steps between positions.

    Returns:
        The behaviour, or ``None`` where less than 2 s of future, or the present, are unknown.

    Raises:
        ValueError: for another shape.
    """
    track = np.asarray(poses, dtype=np.float64)
    if track.shape != (len(TRACK_TIMES_S), 3):
        raise ValueError(f"poses must have shape [{len(TRACK_TIMES_S)}, 3], found {list(track.shape)}")
    times = np.array(TRACK_TIMES_S)
    known = np.flatnonzero(np.isfinite(track).all(1))
    if PRESENT not in known or times[known[-1]] < SHORTEST_S:
        return None
    first = PRESENT - 1 if PRESENT - 1 in known else PRESENT
    last = int(known[-1])
    positions = np.stack([np.interp(times[first : last + 1], times[known], track[known, i]) for i in (0, 1)], axis=1)
    steps = np.diff(positions, axis=0)
    lengths = np.hypot(*steps.T)
    now = PRESENT - first
    # The mean over the half seconds before and after now is twice as sure as either.
    start = float(lengths[: now + 1].mean()) / POSE_INTERVAL_S
    end = float(lengths[-1]) / POSE_INTERVAL_S
    ahead = known[known >= PRESENT]
    headings = _motion_headings(steps[now:], lengths[now:]) if heading_from_motion else _whole(track[:, 2], ahead)
    relative = positions[now:] - positions[now]
    cos, sin = math.cos(headings[0]), math.sin(headings[0])
    # Of boxes that tremble the way is no longer than the farthest they get.
    farthest = float(np.hypot(*relative.T).max())
    travelled = float(lengths[now:].sum()) if farthest > STILL_M else farthest
    backwards = not heading_from_motion and relative[-1] @ (cos, sin) < -MOVED_M / 2
    return Behaviour(
        speed=_speed(start, end, farthest),
        path=_path(travelled, headings, lengths[now:], lanes[PRESENT : last + 1], bool(backwards)),
        start_mps=start,
        end_mps=end,
        travelled_m=travelled,
        turned_rad=float(headings[-1] - headings[0]),
        aside_m=float(relative[-1, 1] * cos - relative[-1, 0] * sin),
        horizon_s=float(times[last]),
    )


def _whole(headings: NDArray[np.float64], known: NDArray[np.intp]) -> NDArray[np.float64]:
    """Headings at every time from the first to the last known one, without jumps.

    A box whose front and rear are swapped for a frame has not turned: changes count modulo half a circle.
    """
    changes = np.diff(headings[known])
    changes -= np.pi * np.round(changes / np.pi)
    continuous = headings[known[0]] + np.concatenate([[0.0], np.cumsum(changes)])
    return np.interp(np.arange(known[0], known[-1] + 1), known, continuous)


def _motion_headings(steps: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Directions of the steps; where it stands, that of the nearest step before, or else after."""
    moving = np.flatnonzero(lengths > STOPPED_MPS * POSE_INTERVAL_S)
    if not len(moving):
        return np.zeros(len(steps))
    directions = np.unwrap(np.arctan2(steps[moving, 1], steps[moving, 0]))
    return directions[np.maximum(np.searchsorted(moving, np.arange(len(steps)), side="right") - 1, 0)]


def _speed(start: float, end: float, farthest: float) -> Speed:
    if farthest <= STILL_M and start < STOPPED_MPS:
        return "still"
    if end < STOPPED_MPS <= start:
        return "stop"
    if abs(end - start) <= max(CHANGE_MPS, CHANGE_SHARE * start):
        return "keep"
    return "accelerate" if end > start else "decelerate"


def _path(
    travelled: float,
    headings: NDArray[np.float64],
    lengths: NDArray[np.float64],
    lanes: Lanes,
    backwards: bool,
) -> Path | None:
    if travelled < MOVED_M:
        return None
    if backwards:
        return "reverse"
    if lanes:  # along a lane the road turns, not who is on it
        free = np.array([lane is None or lane.junction for lane in lanes])
        changes = np.diff(headings) * (free[:-1] | free[1:])
        headings = np.concatenate([[0.0], np.cumsum(changes)])
    turned = headings[-1] - headings[0]
    if abs(turned) > TURN_RAD and _sharpest_radius(headings, lengths) < TURN_RADIUS_M:
        return "turn left" if turned > 0 else "turn right"
    across = _across_lanes(lanes)
    if abs(across) > LANE_CHANGE_M:
        return "lane change left" if across > 0 else "lane change right"
    return "straight"


def _sharpest_radius(headings: NDArray[np.float64], lengths: NDArray[np.float64]) -> float:
    """Smallest mean radius over a second and a half in which the heading changes by more than 6 degrees."""
    steps = min(_SHARPEST_STEPS, len(headings) - 1)
    turned = np.abs(headings[steps:] - headings[:-steps])
    way = np.convolve(lengths, np.ones(steps), mode="valid")[: len(turned)]
    sharp = turned > 0.1
    return float((way[sharp] / turned[sharp]).min()) if sharp.any() else math.inf


def _across_lanes(lanes: Lanes) -> float:
    """How far somebody moves across lanes beside each other, positive to the left; 0 if it stays on its lane.

    Along each lane the change of the offset counts. From one lane to the next beside it the offset jumps by the
    distance of their centre lines; how much of that jump was driven is not known, and is left out.
    """
    known = [lane for lane in lanes if lane is not None]
    moved, left = 0.0, 0
    for before, after in pairwise(known):
        if before.lane == after.lane:
            moved += after.offset - before.offset
        elif before.block == after.block:
            left += 1 if before.offset > after.offset else -1
    return moved if left and (moved > 0) == (left > 0) else 0.0
