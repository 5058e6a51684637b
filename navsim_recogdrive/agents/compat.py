"""Every difference between NAVSIM v1.1 and v2.x, and the one place where NAVSIM is imported first.

Importing this module fails with one clear :class:`NavsimNotUsable` where NAVSIM is absent, or where the unrelated PyPI
project of the same name is installed.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NavsimNotUsable(ImportError):
    """NAVSIM or nuplan-devkit cannot be imported, or ``navsim`` is the unrelated PyPI project."""


_HOW_TO_INSTALL = (
    "Install both devkits from their repositories, without dependencies, and our list of what they import:\n"
    "    pip install -e '.[navsim]'                             # in the checkout of navsim-recogdrive\n"
    "    pip install --no-deps -r requirements/devkits.txt\n"
    "or put an existing NAVSIM checkout and nuplan-devkit on PYTHONPATH."
)


def _require_navsim() -> None:
    spec = importlib.util.find_spec("navsim")
    if spec is None:
        raise NavsimNotUsable(f"NAVSIM is not installed in this environment.\n{_HOW_TO_INSTALL}")
    try:
        found = importlib.util.find_spec("navsim.agents.abstract_agent")
    except ImportError:
        found = None
    if found is None:
        raise NavsimNotUsable(
            f"The installed 'navsim' ({_describe_navsim(spec.origin)}) is not the autonomous-driving benchmark NAVSIM: "
            "it has no navsim.agents.abstract_agent. PyPI's 'navsim' is an unrelated project.\n"
            f"Remove it (pip uninstall navsim). {_HOW_TO_INSTALL}"
        )
    if importlib.util.find_spec("nuplan") is None:
        raise NavsimNotUsable(f"NAVSIM is there but nuplan-devkit, which it needs, is not.\n{_HOW_TO_INSTALL}")


def _describe_navsim(origin: str | None) -> str:
    try:
        return f"version {distribution('navsim').version}, {origin}"
    except PackageNotFoundError:
        return str(origin)


_require_navsim()

try:
    from navsim.agents.abstract_agent import AbstractAgent
    from navsim.common.dataclasses import AgentInput, Scene, SceneFilter, SensorConfig, Trajectory
    from navsim.common.dataloader import SceneLoader
    from navsim.planning.training.abstract_feature_target_builder import AbstractFeatureBuilder, AbstractTargetBuilder
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
except ImportError as error:
    raise NavsimNotUsable(
        f"NAVSIM is installed but does not import: {error}. A package that the devkits need is missing or too new; "
        "pip install -e '.[navsim]' in the checkout of navsim-recogdrive brings the whole list."
    ) from error

NAVSIM_MAJOR: int = 2 if "trajectory_sampling" in inspect.signature(AbstractAgent.__init__).parameters else 1
"""1 for NAVSIM v1.x, 2 for v2.x, told apart by what ``AbstractAgent.__init__`` takes."""


def init_abstract_agent(agent: Any, trajectory_sampling: TrajectorySampling) -> None:
    """Call ``AbstractAgent.__init__`` on ``agent`` as the installed version wants it.

    v2.x takes and keeps the trajectory sampling, v1.1 knows nothing of it; afterwards ``agent._trajectory_sampling``
    is set in both.
    """
    if NAVSIM_MAJOR >= 2:
        AbstractAgent.__init__(agent, trajectory_sampling)
    else:
        AbstractAgent.__init__(agent)
        agent._trajectory_sampling = trajectory_sampling


def count_scenes(logs: Path, scene_filter: SceneFilter, log: str) -> int:
    """Number of original scenes of one log that a filter admits; reads the log and no sensor.

    Args:
        logs: folder of the split's log pickles.
        scene_filter: the split's.
        log: name of the log.
    """
    return len(open_log(logs, logs, scene_filter, log))


def open_log(logs: Path, sensors: Path, scene_filter: SceneFilter, log: str) -> SceneLoader:
    """NAVSIM's loader of the original scenes of one log that a filter admits, without sensors.

    Args:
        logs: folder of the split's log pickles.
        sensors: folder of its images.
        scene_filter: the split's.
        log: name of the log.
    """
    one = replace(scene_filter, log_names=[log])
    if NAVSIM_MAJOR >= 2:
        # Synthetic scenes go with the log of their original.
        one = replace(one, include_synthetic_scenes=False)
        return SceneLoader(data_path=logs, original_sensor_path=sensors, scene_filter=one)
    return SceneLoader(data_path=logs, sensor_blobs_path=sensors, scene_filter=one)


def load_split(
    logs: Path, scene_filter: SceneFilter, names: Sequence[str], synthetic_scenes: Path | None = None
) -> SceneLoader:
    """NAVSIM's loader of the scenes of some logs that a filter admits, without sensors.

    Args:
        logs: folder of the split's log pickles.
        scene_filter: the split's.
        names: of the logs.
        synthetic_scenes: folder of second-stage scenes (v2.x); ``None``: they are left out.
    """
    some = replace(scene_filter, log_names=list(names))
    if NAVSIM_MAJOR < 2:
        return SceneLoader(data_path=logs, sensor_blobs_path=logs, scene_filter=some)
    if synthetic_scenes is None:
        some = replace(some, include_synthetic_scenes=False)
    return SceneLoader(
        data_path=logs, original_sensor_path=logs, synthetic_scenes_path=synthetic_scenes, scene_filter=some
    )


def load_challenge(logs: Path, scene_filter: SceneFilter, synthetic_scenes: Path | None) -> Any:
    """NAVSIM's loader (v2.x) of the scenes of its challenge, which have no annotations, without sensors.

    Args:
        logs: folder of the one file that holds the frames of the first stage.
        scene_filter: the split's, which lists its tokens.
        synthetic_scenes: folder of second-stage scenes; ``None``: they are left out.
    """
    from navsim.common.dataloader_private import SceneLoader as ChallengeLoader

    if synthetic_scenes is None:
        scene_filter = replace(scene_filter, include_synthetic_scenes=False)
    return ChallengeLoader(
        data_path=logs, original_sensor_path=logs, synthetic_scenes_path=synthetic_scenes, scene_filter=scene_filter
    )


def training_config_folder() -> Path:
    """Folder of NAVSIM's configuration for training and dataset caching."""
    return runner_config_folder("training")


def runner_config_folder(kind: str) -> Path:
    """Folder of NAVSIM's configuration for a ``kind`` of runner: ``training``, ``pdm_scoring``, ``metric_caching``."""
    spec = importlib.util.find_spec(f"navsim.planning.script.config.{kind}")
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations:
        raise NavsimNotUsable(f"the installed NAVSIM has no navsim/planning/script/config/{kind}")
    return Path(locations[0])


def make_trajectory(poses: NDArray[np.float32], trajectory_sampling: TrajectorySampling) -> Trajectory:
    """NAVSIM's ``Trajectory`` from ``poses`` [8, 3] (metres, metres, radians; ego frame)."""
    return Trajectory(poses, trajectory_sampling)


__all__ = [
    "NAVSIM_MAJOR",
    "AbstractAgent",
    "AbstractFeatureBuilder",
    "AbstractTargetBuilder",
    "AgentInput",
    "NavsimNotUsable",
    "Scene",
    "SensorConfig",
    "Trajectory",
    "TrajectorySampling",
    "count_scenes",
    "init_abstract_agent",
    "load_challenge",
    "load_split",
    "make_trajectory",
    "open_log",
    "runner_config_folder",
    "training_config_folder",
]
