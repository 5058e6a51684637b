"""What the runner is about to do, and the checks that belong before it starts.

The agent's config reads these values from the runner's own config by interpolation (``host:`` in
``configs/agent/recogdrive_2b.yaml``), because the runner itself only calls ``instantiate(cfg.agent)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from navsim_recogdrive.cache.peek import cached_scene_folders, peek_feature, peek_hidden_state
from navsim_recogdrive.policy.backbones import SharedBackbone, hint_for_hidden_size
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.features import HIDDEN_STATE_CACHE, IMAGE_TILES_CACHE, PREPARATION
from navsim_recogdrive.policy.settings import InvalidSetting

_CONTENTS = {HIDDEN_STATE_CACHE: "hidden states", IMAGE_TILES_CACHE: "image tiles"}


class EmptySplit(ValueError):
    """The logs a training run was told to use hold no scene."""


@dataclass(frozen=True)
class HostRun:
    """Values of the runner's config; every one is ``None`` in a runner that does not have it.

    Attributes:
        output_dir: folder of the run; ``None``: Hydra's. No interpolation: its time stamp is none that a Ray worker can
            resolve.
        cache_path: folder of the feature cache.
        use_cache_without_dataset: training reads the cache and nothing else.
        force_cache_computation: features are computed again where they are cached already.
        navsim_log_path: folder of the split's log pickles.
        filter_log_names: logs the scene filter admits; ``None`` admits all.
        scene_filter: NAVSIM's ``SceneFilter`` of the split.
        sensor_blobs_path: folder of the split's images (NAVSIM v1.1).
        original_sensor_path: likewise (v2.x).
        synthetic_sensor_path: folder of the images of second-stage scenes (v2.x).
        synthetic_scenes_path: folder of the second-stage scenes (v2.x).
        train_logs: logs to train on.
        val_logs: logs to validate on.
        limit_val_batches: Lightning's: 0 trains without validation.
    """

    output_dir: str | None = None
    cache_path: str | None = None
    use_cache_without_dataset: bool | None = None
    force_cache_computation: bool | None = None
    navsim_log_path: str | None = None
    filter_log_names: Sequence[str] | None = None
    scene_filter: Any = None
    sensor_blobs_path: str | None = None
    original_sensor_path: str | None = None
    synthetic_sensor_path: str | None = None
    synthetic_scenes_path: str | None = None
    train_logs: Sequence[str] | None = None
    val_logs: Sequence[str] | None = None
    limit_val_batches: float | None = None


def running_training() -> bool:
    """Whether this process is NAVSIM's ``run_training.py``."""
    if not HydraConfig.initialized():
        return False
    # Lightning starts the other ranks of a run that torchrun did not start, and renames their jobs.
    name = HydraConfig.get().job.name
    return name == "run_training" or name.startswith("train_ddp_process_")


def run_folder(host: HostRun) -> str | None:
    """Folder of the runner's run, ``None`` outside a runner."""
    if host.output_dir is not None or not HydraConfig.initialized():
        return host.output_dir
    return str(HydraConfig.get().runtime.output_dir)


def check_training(host: HostRun, config: PolicyConfig) -> None:
    """Checks of a training run that would otherwise fail after minutes or with another's error.

    Raises:
        EmptySplit: if ``train_logs`` or ``val_logs`` select nothing.
        InvalidSetting: if cached hidden states do not fit the planner, or cached image tiles the VLM.
    """
    for split in ("train_logs", "val_logs"):
        logs = getattr(host, split)
        if logs is None:
            continue
        if host.use_cache_without_dataset and host.cache_path is not None:
            folder, found = Path(host.cache_path), [log for log in logs if (Path(host.cache_path) / log).is_dir()]
            what = "log folders of the feature cache"
        elif host.navsim_log_path is not None:
            admitted = logs if host.filter_log_names is None else set(logs) & set(host.filter_log_names)
            folder = Path(host.navsim_log_path)
            found = [log for log in admitted if (folder / f"{log}.pkl").is_file()]
            what = "logs of the data set that the scene filter admits"
        else:
            continue
        if not found:
            present = sorted(path.stem for path in folder.iterdir())[:3] if folder.is_dir() else []
            raise EmptySplit(
                f"{split} selects no scene: none of its {len(logs)} names ({', '.join(list(logs)[:3])}, ...) is among "
                f"the {what} in {folder} ({', '.join(present) + ', ...' if present else 'which is empty or missing'}). "
                f"Set {split}=[NAME,...], or check train_test_split, OPENSCENE_DATA_ROOT and cache_path."
            )
    _check_cache_fits(host, config)


def _check_cache_fits(host: HostRun, config: PolicyConfig) -> None:
    if host.cache_path is None or not Path(host.cache_path).is_dir():
        return
    joint = not config.cache_hidden_state
    name, other = (IMAGE_TILES_CACHE, HIDDEN_STATE_CACHE) if joint else (HIDDEN_STATE_CACHE, IMAGE_TILES_CACHE)
    check = _check_image_tiles if joint else _check_hidden_state
    for split in ("train_logs", "val_logs"):
        folder = _first_cached(host, split, name)
        if folder is not None:
            check(folder / f"{name}.gz", host, config)
        elif host.use_cache_without_dataset:
            setting = "agent.cache_hidden_state"
            if _first_cached(host, split, other) is not None:
                raise EmptySplit(
                    f"the cache {host.cache_path} holds {_CONTENTS[other]} for {split}, this run needs "
                    f"{_CONTENTS[name]} ({setting}={str(not joint).lower()}): set {setting}={str(joint).lower()}, or "
                    f"run run_dataset_caching.py with {setting}={str(not joint).lower()} and the same cache_path"
                )
            raise EmptySplit(
                f"the cache {host.cache_path} holds no complete scene of {split}; fill it with run_dataset_caching.py "
                f"agent=recogdrive_2b {setting}={str(not joint).lower()} cache_path={host.cache_path}"
            )


def _first_cached(host: HostRun, split: str, name: str) -> Path | None:
    folders = cached_scene_folders(Path(str(host.cache_path)), getattr(host, split), f"{name}.gz")
    return next(folders, None)


def _check_hidden_state(path: Path, host: HostRun, config: PolicyConfig) -> None:
    info = peek_hidden_state(path).info
    features, rows = info.features, info.length
    expected = config.planner.hidden_state_size
    if features != expected:
        raise InvalidSetting(
            f"the cache {host.cache_path} holds hidden states of size {features} ({rows} rows per scene), the "
            f"planner expects {expected}. {hint_for_hidden_size(features)} or make a cache with the right VLM"
        )


def _check_image_tiles(path: Path, host: HostRun, config: PolicyConfig) -> None:
    found = bytes(peek_feature(path, PREPARATION).tolist())
    expected = SharedBackbone(config.vlm).preparation.fingerprint
    if found != expected:
        raise InvalidSetting(
            f"the cache {host.cache_path} holds image tiles and prompts made with other settings (fingerprint "
            f"{found.hex()[:12]}, expected {expected.hex()[:12]}): use another cache_path, or set agent.vlm.path, "
            "vlm.prompt_profile, vlm.hidden_length, vlm.max_tiles and cam_type as they were when it was made"
        )
