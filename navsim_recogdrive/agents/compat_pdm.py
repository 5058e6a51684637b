"""Every difference between the PDM scorers of NAVSIM v1.1 and v2.x, and every private array of theirs that is read.

Apart from :mod:`navsim_recogdrive.agents.compat`, because processes that score import this and not the training half
of NAVSIM, which takes them seconds and a hundred megabytes more.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from navsim.evaluate import pdm_score as navsim_pdm_score
    from navsim.planning.simulation.planner.pdm_planner.observation.pdm_occupancy_map import PDMDrivableMap
    from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer, PDMScorerConfig
    from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator
    from navsim.planning.simulation.planner.pdm_planner.utils.pdm_enums import (
        BBCoordsIndex,
        MultiMetricIndex,
        StateIndex,
        WeightedMetricIndex,
    )
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
except ImportError:
    from navsim_recogdrive.agents import compat  # noqa: F401  -- says what is wrong with the installation

    raise

MetricCache = Any
"""NAVSIM's ``MetricCache``: two classes that share six attributes."""

IS_V2: bool = "traffic_agents_policy" in inspect.signature(navsim_pdm_score.pdm_score).parameters
"""Whether the installed scorer is that of NAVSIM v2.x."""

NAVSIM_NAME: str = "v2.x" if IS_V2 else "v1.x"

SIMULATED_STEPS: int = 40
"""Steps of 0.1 s over which NAVSIM simulates and scores."""

OCCUPANCY_MAPS: int = SIMULATED_STEPS + 1 if IS_V2 else SIMULATED_STEPS + 11
"""Traffic snapshots in one metric cache: 41 in v2.x, 51 in v1.x, which looks one more second ahead for TTC."""

MULTIPLIED: dict[str, int]
"""Row in the scorer's array of multiplied metrics, by the name of NAVSIM's result column."""
WEIGHTED: dict[str, int]
"""Row in the scorer's array of averaged metrics, by the name of NAVSIM's result column."""

if IS_V2:
    from navsim.common.enums import SceneFrameType
    from navsim.traffic_agents_policies.log_replay_traffic_agents import LogReplayTrafficAgents

    MULTIPLIED = {
        "no_at_fault_collisions": MultiMetricIndex.NO_COLLISION,
        "drivable_area_compliance": MultiMetricIndex.DRIVABLE_AREA,
        "traffic_light_compliance": MultiMetricIndex.TRAFFIC_LIGHT_COMPLIANCE,
        "driving_direction_compliance": MultiMetricIndex.DRIVING_DIRECTION,
    }
    WEIGHTED = {
        "ego_progress": WeightedMetricIndex.PROGRESS,
        "time_to_collision_within_bound": WeightedMetricIndex.TTC,
        "lane_keeping": WeightedMetricIndex.LANE_KEEPING,
        "history_comfort": WeightedMetricIndex.HISTORY_COMFORT,
    }
    # The two-frame comfort compares scenes; it is no property of one trajectory and NAVSIM's score leaves it out.
    _UNSCORED = {WeightedMetricIndex.TWO_FRAME_EXTENDED_COMFORT}
    _AGGREGATE = "_aggregate_pdm_scores"
else:
    MULTIPLIED = {
        "no_at_fault_collisions": MultiMetricIndex.NO_COLLISION,
        "drivable_area_compliance": MultiMetricIndex.DRIVABLE_AREA,
    }
    WEIGHTED = {
        "ego_progress": WeightedMetricIndex.PROGRESS,
        "time_to_collision_within_bound": WeightedMetricIndex.TTC,
        "comfort": WeightedMetricIndex.COMFORTABLE,
        "driving_direction_compliance": WeightedMetricIndex.DRIVING_DIRECTION,
    }
    _UNSCORED = set()
    _AGGREGATE = "_aggregate_scores"


class UnknownScorer(RuntimeError):
    """The installed NAVSIM's scorer is not built like those of v1.1 and v2.2."""


@dataclass(frozen=True)
class RawMetrics:
    """What the scorer found out about N trajectories before it compared them with each other.

    Attributes:
        multiplied: [M, N] float64, rows as in :data:`MULTIPLIED`.
        weighted: [W, N] float64, rows as in :data:`WEIGHTED`; the row of the progress holds nothing of use yet.
        progress: [N] float64, metres along the route's centre line.
    """

    multiplied: NDArray[np.float64]
    weighted: NDArray[np.float64]
    progress: NDArray[np.float64]

    def __getitem__(self, columns: Any) -> RawMetrics:
        """Some of the trajectories."""
        return RawMetrics(self.multiplied[:, columns], self.weighted[:, columns], self.progress[columns])

    @staticmethod
    def concatenate(parts: list[RawMetrics]) -> RawMetrics:
        """All trajectories of ``parts``, in order."""
        return RawMetrics(
            np.concatenate([part.multiplied for part in parts], axis=1),
            np.concatenate([part.weighted for part in parts], axis=1),
            np.concatenate([part.progress for part in parts]),
        )


class Scorer:
    """NAVSIM's simulator and scorer for log-replay traffic, and the scorer's raw metrics.

    Args:
        overrides: values of NAVSIM's ``PDMScorerConfig`` by name; what is not named has the value with which NAVSIM
            evaluates, in v2.x with the human filter.

    Raises:
        ValueError: a name is none of ``PDMScorerConfig``'s.
        UnknownScorer: the installed version of the scorer stores its metrics elsewhere.
    """

    def __init__(self, overrides: Mapping[str, Any] | None = None) -> None:
        overrides = dict(overrides or {})
        known = [field.name for field in fields(PDMScorerConfig)]
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise ValueError(
                f"NAVSIM {NAVSIM_NAME} has no scorer setting {', '.join(unknown)}; it has {', '.join(known)}"
            )
        defaults = {"human_penalty_filter": True} if IS_V2 else {}
        self.sampling = TrajectorySampling(num_poses=SIMULATED_STEPS, interval_length=0.1)
        self._config = PDMScorerConfig(**{**defaults, **overrides})
        self._simulator = PDMSimulator(self.sampling)
        self._scorer = PDMScorer(self.sampling, self._config)
        missing = [
            name
            for name in ("_multi_metrics", "_weighted_metrics", "_progress_raw", _AGGREGATE)
            if not hasattr(self._scorer, name)
        ]
        if missing:
            raise UnknownScorer(
                f"the installed NAVSIM's PDMScorer has no {', '.join(missing)}: the PDM reward knows the scorers of "
                "NAVSIM v1.1 and v2.2; install one of them"
            )
        self.weights: NDArray[np.float64] = np.array(self._config.weighted_metrics_array, dtype=np.float64)
        self.weights[list(_UNSCORED)] = 0.0

    @property
    def human_filter(self) -> bool:
        """Whether a planner is not punished for what the human did too (v2.x)."""
        return bool(getattr(self._config, "human_penalty_filter", False))

    def simulate(self, proposals: NDArray[np.float64], cache: MetricCache) -> NDArray[np.float64]:
        """Drive along ``proposals`` [N, 41, 11] with NAVSIM's controller and bicycle model; states [N, 41, 11]."""
        states: NDArray[np.float64] = self._simulator.simulate_proposals(proposals, cache.ego_state)
        return states

    def raw_metrics(self, states: NDArray[np.float64], cache: MetricCache) -> RawMetrics:
        """Metrics of simulated ``states`` [N, 41, 11] in a cache that went through :func:`replay_traffic`."""
        scene = (
            cache.observation,
            cache.centerline,
            cache.route_lane_ids,
            cache.drivable_area_map,
        )
        if IS_V2:
            self._scorer.score_proposals(
                states, *scene, cache.map_parameters, human_past_trajectory=cache.past_human_trajectory
            )
        else:
            self._scorer.score_proposals(states, *scene)
        return RawMetrics(self._scorer._multi_metrics, self._scorer._weighted_metrics, self._scorer._progress_raw)

    def normalized_progress(self, raw: RawMetrics) -> NDArray[np.float64]:
        """Progress [N] that NAVSIM gives to ``raw``'s N trajectories when it scores just these together."""
        scorer = self._scorer
        scorer._multi_metrics, scorer._weighted_metrics = raw.multiplied, raw.weighted.copy()
        scorer._progress_raw = raw.progress
        getattr(scorer, _AGGREGATE)()
        progress: NDArray[np.float64] = scorer._weighted_metrics[WeightedMetricIndex.PROGRESS]
        return progress


def replay_traffic(cache: MetricCache, scorer: Scorer) -> None:
    """Put the recorded traffic into the scene's occupancy maps, as v2.x does anew for every trajectory.

    The recorded traffic does not depend on the trajectory, so once per scene is enough. Maps that already hold it
    are left as they are.
    """
    if not IS_V2:
        return
    observation = cache.observation
    recorded = observation.detections_tracks
    # The policy reads no ego state: it replays.
    replayed = LogReplayTrafficAgents(scorer.sampling).simulate_environment(None, cache)
    unchanged = len(replayed) == len(recorded) and all(a is b for a, b in zip(replayed, recorded, strict=True))
    if not unchanged:
        observation.update_detections_tracks(detection_tracks=replayed)


def is_filtered_by_human(cache: MetricCache, scorer: Scorer) -> bool:
    """Whether NAVSIM applies the human filter to this scene: v2.x, original scenes only."""
    return scorer.human_filter and cache.scene_type == SceneFrameType.ORIGINAL


def why_unfit(cache: MetricCache) -> str | None:
    """What shows that ``cache`` was made by another version of NAVSIM; ``None`` if it fits."""
    wanted = ["ego_state", "trajectory", "observation", "centerline", "route_lane_ids", "drivable_area_map"]
    if IS_V2:
        wanted += ["scene_type", "human_trajectory", "past_human_trajectory", "map_parameters"]
    missing = [name for name in wanted if not hasattr(cache, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    maps = len(cache.observation._occupancy_maps)
    if maps != OCCUPANCY_MAPS:
        return f"it holds {maps} occupancy maps where {OCCUPANCY_MAPS} belong"
    return None


def absolute_trajectory(poses: NDArray[np.float64], sampling: TrajectorySampling, cache: MetricCache) -> Any:
    """NAVSIM's ``InterpolatedTrajectory`` of poses [T, 3] in the ego frame."""
    from navsim.common.dataclasses import Trajectory

    return navsim_pdm_score.transform_trajectory(Trajectory(poses, sampling), cache.ego_state)


def trajectory_states(trajectory: Any, scorer: Scorer, cache: MetricCache) -> NDArray[np.float64]:
    """States [41, 11] of an ``InterpolatedTrajectory`` at the scorer's time steps, by NAVSIM's own functions."""
    states: NDArray[np.float64] = navsim_pdm_score.get_trajectory_as_array(
        trajectory, scorer.sampling, cache.ego_state.time_point
    )
    return states


__all__ = [
    "MULTIPLIED",
    "NAVSIM_NAME",
    "OCCUPANCY_MAPS",
    "SIMULATED_STEPS",
    "WEIGHTED",
    "BBCoordsIndex",
    "MetricCache",
    "PDMDrivableMap",
    "RawMetrics",
    "Scorer",
    "StateIndex",
    "TrajectorySampling",
    "UnknownScorer",
    "absolute_trajectory",
    "is_filtered_by_human",
    "replay_traffic",
    "trajectory_states",
    "why_unfit",
]
