"""ReCogDriveRLAgent: reinforcement learning by PDM score through NAVSIM's ``run_training.py``."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig

from navsim_recogdrive.agents.cache_use import vlm_of_run
from navsim_recogdrive.agents.compat import TrajectorySampling
from navsim_recogdrive.agents.compat_pdm import NAVSIM_NAME
from navsim_recogdrive.agents.host import HostRun, running_training
from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
from navsim_recogdrive.agents.pdm_reward import PDMReward, PDMRewardSettings
from navsim_recogdrive.agents.recogdrive_agent import ReCogDriveAgent
from navsim_recogdrive.agents.reward_scenes import (
    NOT_USABLE,
    STOP,
    CheckDatasets,
    SceneCheck,
    cached_scenes,
    check_numpy,
)
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.memory_advice import MemoryAdvice
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm
from navsim_recogdrive.policy.settings import InvalidSetting, build_settings
from navsim_recogdrive.policy.training_configuration import ImitationConfig
from navsim_recogdrive.rl.callbacks import CloseReward, RLLog
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.objective import RLObjective
from navsim_recogdrive.rl.partial_reward import PartialReward
from navsim_recogdrive.rl.reference import ReferencePolicy

_log = logging.getLogger(__name__)

PUBLISHED_EPOCHS = 10
_MAX_EPOCHS = "trainer.params.max_epochs"


class ReCogDriveRLAgent(ReCogDriveAgent):
    """A :class:`ReCogDriveAgent` that ``run_training.py`` trains by DiffGRPO, with the PDM score as reward.

    In every other runner it is a :class:`ReCogDriveAgent`: what only reinforcement learning needs is not looked at.

    Args:
        trajectory_sampling: as in :class:`ReCogDriveAgent`.
        checkpoint_path: starting weights; ``None``: those of the reference policy. In scoring and submission as in
            :class:`ReCogDriveAgent`.
        reference_policy_checkpoint: the planner of imitation learning, frozen; needed unless both ``rl.bc_weight`` and
            ``rl.kl_weight`` are 0.
        metric_cache_path: folder of metric caches of all scenes to train and validate on.
        missing_metric_caches: for scenes without one, and for those whose one is found unreadable at the start or
            unusable in training: ``stop``, or ``skip`` to mask them out.
        rl: settings of :class:`~navsim_recogdrive.rl.configuration.RLConfig`.
        reward: settings of :class:`~navsim_recogdrive.agents.pdm_reward.PDMRewardSettings` but the path.
        host: as in :class:`ReCogDriveAgent`.
        settings: as in :class:`ReCogDriveAgent`.

    Raises:
        InvalidSetting: for settings that do not fit together, a missing reference policy, or one that was trained with
            another VLM.
        FileNotFoundError: if a checkpoint does not exist.
        PlannerCheckpointError: if a checkpoint is not one of this planner, with the list of what differs.
        UnusableMetricCache: if the metric caches were made by another NAVSIM version, there are none, or one cannot be
            read.
        MissingMetricCaches: if scenes have none; counts and lists them.
        RewardWorkerFailed: if the reward's processes cannot start.
    """

    def __init__(
        self,
        trajectory_sampling: TrajectorySampling,
        checkpoint_path: str | None = None,
        reference_policy_checkpoint: str | None = None,
        metric_cache_path: str | None = None,
        missing_metric_caches: str = "stop",
        rl: Mapping[str, Any] | None = None,
        reward: Mapping[str, Any] | None = None,
        host: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if not running_training():
            super().__init__(trajectory_sampling, checkpoint_path, host, **settings)
            return
        # What is quick to check comes first: the agent's own checks read a whole feature cache.
        rl_config = build_settings(RLConfig, rl or {}, "rl")
        config = PolicyConfig.from_mapping(settings)
        run = build_settings(HostRun, host or {}, "host")
        _check_settings(config, checkpoint_path)
        _warn_of_default_epochs(config)
        reference = _reference(reference_policy_checkpoint, config, rl_config)
        start = reference_policy_checkpoint if checkpoint_path is None else checkpoint_path
        if start is None:
            raise InvalidSetting(
                "reinforcement learning needs a trained planner to start from: set agent.checkpoint_path=FILE or "
                "agent.reference_policy_checkpoint=FILE"
            )
        if metric_cache_path is None:
            raise InvalidSetting(
                "the reward needs metric caches of the scenes to train on: set agent.metric_cache_path=FOLDER (made by "
                "scripts/cache_dataset/run_metric_caching_train.sh)"
            )
        check_numpy()
        reward_settings = _reward_settings(metric_cache_path, reward or {})
        scene_check = SceneCheck(MetricCacheFolder(metric_cache_path), missing_metric_caches)
        from_cache = bool(run.use_cache_without_dataset) and run.cache_path is not None
        left_out = scene_check.check(cached_scenes(run)) if from_cache else []

        objective = {
            "rl": rl_config.deciding(),
            "reward": _deciding(reward_settings),
            "reference_policy_checkpoint": {"content": reference and _digest(reference_policy_checkpoint)},
        }
        super().__init__(trajectory_sampling, start, host, objective_settings=objective, **settings)
        vlm = vlm_of_run(self._host, self.config, self._backbone)
        if vlm is not None:
            for checkpoint in {start, reference_policy_checkpoint} - {None}:
                check_remembered_vlm(str(checkpoint), vlm, cached=from_cache)
        self._reward = PartialReward(PDMReward(reward_settings, stop_at_unusable=missing_metric_caches == STOP))
        self._reward.leave_out(left_out, NOT_USABLE)
        self._rl_objective = RLObjective(self._policy, rl_config, self._reward, reference)
        self._objective = self._rl_objective
        self._dataset_check = None if from_cache else CheckDatasets(scene_check, self._reward)

    def get_training_callbacks(self) -> list[pl.Callback]:
        """As in imitation learning, but the best checkpoint is that of the highest score; the log of RL, and its end.

        The score is that of validation plans drawn as ``sampling.deterministic`` says.
        """
        if not running_training():
            return super().get_training_callbacks()
        kind = "deterministic" if self.config.sampling.deterministic else "stochastic"
        vlm = vlm_of_run(self._host, self.config, self._backbone)
        return [
            *self._common_callbacks(vlm, best_score=f"val/score_{kind}"),
            *([] if self._dataset_check is None else [self._dataset_check]),
            RLLog(self._rl_objective),
            MemoryAdvice(self._rl_objective.config.memory_advice()),
            CloseReward(self._reward),
        ]


def _check_settings(config: PolicyConfig, checkpoint_path: str | None) -> None:
    config.check_checkpoint(checkpoint_path)  # not of the reference policy, which is what was validated
    if not config.cache_hidden_state:
        raise InvalidSetting(
            "reinforcement learning trains the planner on hidden states: agent.cache_hidden_state=false is for "
            "imitation learning. Leave it out; a checkpoint of joint mode can be trained on after "
            "run_dataset_caching.py with agent.checkpoint_path=FILE, which caches its own VLM's hidden states"
        )
    if config.imitation != ImitationConfig():
        names = ", ".join(f"agent.imitation.{field.name}" for field in fields(ImitationConfig))
        raise InvalidSetting(f"{names} cannot act in reinforcement learning: leave it out")


def _warn_of_default_epochs(config: PolicyConfig) -> None:
    """NAVSIM trains for 100 epochs where nobody says otherwise: for days, with a learning rate that hardly falls."""
    if not HydraConfig.initialized():
        return
    given = {override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task}
    if _MAX_EPOCHS not in given:
        _log.warning(
            "%s is not given, so NAVSIM's default holds: reinforcement learning trains for %s epochs, and the learning "
            "rate falls over as many. Published: %s=%d",
            _MAX_EPOCHS,
            config.optimizer.epochs,
            _MAX_EPOCHS,
            PUBLISHED_EPOCHS,
        )


def _reference(path: str | None, config: PolicyConfig, rl: RLConfig) -> ReferencePolicy | None:
    if path is None and not rl.needs_reference:
        return None
    return ReferencePolicy.from_checkpoint(path, config.planner)


def _digest(path: str | None) -> str | None:
    """Of a file's content, in which a resumed run may have another path; ``None`` for no file."""
    if path is None:
        return None
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def _deciding(reward: PDMRewardSettings) -> dict[str, Any]:
    """What decides scores, not how they are computed; a resumed run must have the same."""
    settings = {name: getattr(reward, name) for name in ("progress_weight", "scorer")}
    return {**settings, "navsim": NAVSIM_NAME}  # PDMS or EPDMS


def _reward_settings(metric_cache_path: str, settings: Mapping[str, Any]) -> PDMRewardSettings:
    if "metric_cache_path" in settings:
        raise InvalidSetting("agent.reward has no metric_cache_path: set agent.metric_cache_path")
    try:
        return build_settings(PDMRewardSettings, {"metric_cache_path": metric_cache_path, **settings}, "reward")
    except ValueError as error:
        raise InvalidSetting(f"agent.reward: {error}") from error
