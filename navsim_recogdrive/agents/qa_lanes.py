"""Which lane of nuPlan's map somebody is on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from nuplan.common.actor_state.state_representation import Point2D
from nuplan.common.maps.maps_datatypes import SemanticMapLayer
from nuplan.common.maps.nuplan_map.map_factory import get_maps_api

from navsim_recogdrive.pretraining.records import LaneAt

MAP_VERSION = "nuplan-maps-v1.0"
"""The version that NAVSIM asks for."""

LARGEST_ANGLE_RAD = np.pi / 3
"""Who heads farther off a lane's direction is not on it: it crosses, or it is the lane of those who oncome."""

_LAYERS = [SemanticMapLayer.LANE, SemanticMapLayer.LANE_CONNECTOR]


class NoMap(ValueError):
    """The map of a location cannot be opened."""


class _Lane:
    """A lane or lane connector: its polygon and its centre line."""

    def __init__(self, item: Any, junction: bool) -> None:
        self.junction = junction
        self.id, self.block = str(item.id), str(item.get_roadblock_id())
        self.polygon = item.polygon
        line = np.array([(pose.x, pose.y) for pose in item.baseline_path.discrete_path])
        steps = np.diff(line, axis=0)
        self._starts = line[:-1]
        self._lengths = np.maximum(np.hypot(*steps.T), 1e-9)
        self._directions = steps / self._lengths[:, None]

    def at(self, pose: NDArray[np.float64]) -> tuple[float, float]:
        """Distance to the left of the centre line, and the angle to its direction, of ``pose [3]``."""
        relative = pose[:2] - self._starts
        along = np.clip((relative * self._directions).sum(1), 0.0, self._lengths)
        nearest = int(np.hypot(*(relative - along[:, None] * self._directions).T).argmin())
        dx, dy = self._directions[nearest]
        offset = relative[nearest] @ (-dy, dx)
        angle = (pose[2] - np.arctan2(dy, dx) + np.pi) % (2 * np.pi) - np.pi
        return float(offset), abs(float(angle))


class LaneMap:
    """The lanes of one location.

    Args:
        root: folder of nuPlan's maps.
        location: its name, such as ``us-nv-las-vegas-strip``.

    Raises:
        NoMap: if there is no such map.
    """

    def __init__(self, root: Path, location: str) -> None:
        try:
            self._map = get_maps_api(str(root), MAP_VERSION, location)
        except Exception as error:  # the devkit asserts, and lets errors of GeoPandas and the disk through
            raise NoMap(f"the map of {location} in {root} cannot be opened: {error}") from None
        self._lanes: dict[tuple[SemanticMapLayer, str], _Lane] = {}

    def lanes_at(self, poses: NDArray[np.float64]) -> list[LaneAt | None]:
        """The lane of each of ``poses [N, 3]`` (x, y, heading; global), ``None`` off the lanes and for rows of nan.

        Where lanes overlap, as in junctions, it is the one whose direction fits best.
        """
        found: list[LaneAt | None] = [None] * len(poses)
        known = np.flatnonzero(np.isfinite(poses).all(1))
        if not len(known):
            return found
        low, high = poses[known, :2].min(0), poses[known, :2].max(0)
        lanes = self._near((low + high) / 2, float((high - low).max()) / 2 + 1.0)
        if not lanes:
            return found
        tree = shapely.STRtree([lane.polygon for lane in lanes])
        best = np.full(len(poses), LARGEST_ANGLE_RAD)
        for point, lane in tree.query(shapely.points(poses[known, :2]), predicate="intersects").T.tolist():
            index = int(known[point])
            offset, angle = lanes[lane].at(poses[index])
            if angle < best[index]:
                best[index] = angle
                found[index] = LaneAt(lanes[lane].id, lanes[lane].block, round(offset, 3), lanes[lane].junction)
        return found

    def _near(self, centre: NDArray[np.float64], radius: float) -> Sequence[_Lane]:
        lanes = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the devkit casts columns that have empty cells
            objects = self._map.get_proximal_map_objects(Point2D(*centre.tolist()), radius, _LAYERS)
            for layer in _LAYERS:
                for item in objects[layer]:
                    key = (layer, str(item.id))
                    if key not in self._lanes:
                        self._lanes[key] = _Lane(item, layer == SemanticMapLayer.LANE_CONNECTOR)
                    lanes.append(self._lanes[key])
        return lanes


@lru_cache(maxsize=4)
def lane_map(root: Path, location: str) -> LaneMap:
    """The lanes of a location, opened once per process; raises as :class:`LaneMap`."""
    return LaneMap(root, location)


def map_root() -> Path:
    """Folder of nuPlan's maps.

    Raises:
        NoMap: if ``NUPLAN_MAPS_ROOT`` does not name it.
    """
    root = Path(os.environ.get("NUPLAN_MAPS_ROOT", ""))
    if not (root / f"{MAP_VERSION}.json").is_file():
        raise NoMap(f"NUPLAN_MAPS_ROOT={root} holds no {MAP_VERSION}.json: set it to the folder of nuPlan's maps")
    return root
