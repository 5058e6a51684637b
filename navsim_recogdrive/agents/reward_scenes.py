"""Whether every scene of a training run can be scored: before the first step, not in the middle of an epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from navsim_recogdrive.agents.host import HostRun
from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, describe_missing
from navsim_recogdrive.cache.peek import cached_scene_folders
from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.rl.partial_reward import PartialReward

logger = logging.getLogger(__name__)

NUMPY_NEEDED = "1.26.4"
"""Metric caches written with numpy 2 cannot be read with an older one."""

STOP, SKIP = "stop", "skip"
TRAINING, VALIDATION = "training", "validation"
NOT_USABLE = "it has no usable metric cache"
"""Why a scene is left out."""


class MissingMetricCaches(ValueError):
    """Scenes to train or validate on that have no usable metric cache; the message counts and lists them."""


def check_numpy() -> None:
    """Refuse a numpy that cannot read all metric caches.

    Raises:
        ImportError: if numpy is older than 1.26.4.
    """
    if np.lib.NumpyVersion(np.__version__) < NUMPY_NEEDED:
        raise ImportError(
            f"metric caches need numpy {NUMPY_NEEDED} or newer, found {np.__version__}: pip install "
            f"'numpy>={NUMPY_NEEDED}'"
        )


class SceneCheck:
    """Compares the scenes of a run with the metric caches there are.

    Args:
        folder: of metric caches.
        missing: what to do if there are scenes without one, or with one that cannot be read: ``stop``, or ``skip`` to
            train on the others.

    Raises:
        InvalidSetting: if ``missing`` is another word.
    """

    def __init__(self, folder: MetricCacheFolder, missing: str) -> None:
        if missing not in (STOP, SKIP):
            raise InvalidSetting(f"agent.missing_metric_caches must be {STOP} or {SKIP}, found {missing!r}")
        self._folder = folder
        self._missing = missing

    def check(self, scenes: Mapping[str, Sequence[str]]) -> list[str]:
        """Look for the metric caches of all scenes, open them all, and read some of each split.

        Args:
            scenes: tokens by split.

        Returns:
            The scenes to leave out; empty with ``stop``.

        Raises:
            MissingMetricCaches: with ``stop`` if a scene has none; with ``skip`` if no scene of a split has a usable
                one: nothing would be learned, or there were no score to choose a checkpoint by.
            UnusableMetricCache: if one was made by another NAVSIM version; with ``stop`` also if one cannot be read.
        """
        missing = {split: self._folder.missing_tokens(tokens) for split, tokens in scenes.items()}
        said = [
            f"{split}: {describe_missing(tokens, len(scenes[split]), self._folder.root)}"
            for split, tokens in missing.items()
            if tokens
        ]
        if said and self._missing == STOP:
            advice = f"; or set agent.missing_metric_caches={SKIP} to train on the others"
            self._refuse(said, "" if _with_nothing_left(scenes, missing) else advice)
        left_out = {split: list(tokens) for split, tokens in missing.items()}
        for split, tokens in scenes.items():
            absent = set(missing[split])
            there = [token for token in tokens if token not in absent]
            if self._missing == STOP:
                self._folder.check(there)
            elif faulty := self._folder.unusable(there):
                said.append(f"{split}: {self._folder.describe_unusable(faulty, len(there))}")
                left_out[split] += faulty
        if empty := _with_nothing_left(scenes, left_out):
            without = "; or train without validation: trainer.params.limit_val_batches=0"
            self._refuse(said, without if empty == [VALIDATION] else "")
        if said and rank_zero_only.rank == 0:
            logger.warning(
                "Scenes without a usable metric cache get no reward and are masked out of the loss:\n%s",
                "\n".join(said),
            )
        return [token for tokens in left_out.values() for token in tokens]

    @staticmethod
    def _refuse(said: Sequence[str], further: str) -> NoReturn:
        raise MissingMetricCaches(
            "\n".join(said) + "\nMake them with scripts/cache_dataset/run_metric_caching_train.sh (the same "
            "train_test_split and scene filter), which keeps every file that exists: delete those that are empty or "
            f"broken first{further}"
        )


def _with_nothing_left(scenes: Mapping[str, Sequence[str]], left_out: Mapping[str, Sequence[str]]) -> list[str]:
    return [split for split, tokens in scenes.items() if 0 < len(tokens) == len(left_out[split])]


def cached_scenes(host: HostRun) -> dict[str, list[str]]:
    """Tokens by split of a run that reads its features from the cache alone, as NAVSIM finds them.

    Without validation (``limit_val_batches`` 0) there is no such split.
    """
    assert host.cache_path is not None
    splits = {TRAINING: host.train_logs, VALIDATION: host.val_logs}
    if host.limit_val_batches == 0:
        del splits[VALIDATION]
    first, *others = (f"{name}.gz" for name in HIDDEN_STATE_LAYOUT.files)
    return {
        split: [
            folder.name
            for folder in cached_scene_folders(Path(host.cache_path), logs, first)
            if all((folder / name).is_file() for name in others)
        ]
        for split, logs in splits.items()
    }


class CheckDatasets(pl.Callback):
    """Checks the scenes of data sets that NAVSIM builds from logs, once they are known and before the first step.

    Args:
        check: see there.
        reward: is not asked for scenes that are left out.
    """

    def __init__(self, check: SceneCheck, reward: PartialReward) -> None:
        self._check = check
        self._reward = reward
        self._validation_checked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check both splits; raises as :meth:`SceneCheck.check`."""
        scenes = {TRAINING: _tokens(trainer.train_dataloader)}
        if trainer.val_dataloaders is not None:
            scenes[VALIDATION] = _tokens(trainer.val_dataloaders)
            self._validation_checked = True
        self._reward.leave_out(self._check.check(scenes), NOT_USABLE)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check validation where Lightning had not prepared it at the start; raises as :meth:`SceneCheck.check`."""
        if not self._validation_checked:
            self._validation_checked = True
            self._reward.leave_out(self._check.check({VALIDATION: _tokens(trainer.val_dataloaders)}), NOT_USABLE)


def _tokens(loader: Any) -> list[str]:
    tokens: list[str] = loader.dataset._scene_loader.tokens
    return tokens
