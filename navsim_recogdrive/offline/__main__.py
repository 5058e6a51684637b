"""``python -m navsim_recogdrive.offline stage=cache|train|score output_dir=DIR world_root=DIR [overrides]``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from navsim_recogdrive.cache.identity import read_identity
from navsim_recogdrive.offline.feature_cache import CachedScenes, cache_scenes
from navsim_recogdrive.offline.scoring import constant_velocity, human, policy_planner, score_agents
from navsim_recogdrive.offline.training import OfflineModule, train
from navsim_recogdrive.planner.checkpoints import load_planner_weights
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.backbones import SharedBackbone, check_vlm_fits, resolve_device
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.joint import read_trained_vlm
from navsim_recogdrive.policy.objective import ImitationObjective
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.vlm.adapters import TrainedVLM
from navsim_recogdrive.world.scenes import WorldScene, load_scenes

logger = logging.getLogger(__name__)

# What the agent config holds for NAVSIM alone.
NAVSIM_ONLY = ("_target_", "_convert_", "trajectory_sampling", "host", "checkpoint_path")


def _policy(cfg: DictConfig) -> tuple[ReCogDrivePolicy, PolicyConfig, TrainedVLM | None]:
    settings: Any = OmegaConf.to_container(cfg.agent, resolve=True)
    config = PolicyConfig.from_mapping({key: value for key, value in settings.items() if key not in NAVSIM_ONLY})
    if not config.cache_hidden_state:
        raise InvalidSetting(
            "agent.cache_hidden_state=false (joint mode) runs through NAVSIM's runners only; offline mode trains on "
            "cached hidden states: leave it out"
        )
    if cfg.stage != "train":  # training reads the cache alone
        check_vlm_fits(config.vlm, config.planner.hidden_state_size)
    config.check_checkpoint(cfg.agent.checkpoint_path)
    planner = DiffusionPlanner(config.planner)
    trained = None
    if cfg.agent.checkpoint_path is not None:
        load_planner_weights(planner, cfg.agent.checkpoint_path, config.checkpoint_weights)
        trained = read_trained_vlm(cfg.agent.checkpoint_path, config.checkpoint_weights)
    backbone = SharedBackbone(config.vlm, config.device, trained=trained)
    return ReCogDrivePolicy(planner, backbone, config.sampling), config, trained


def _scenes(cfg: DictConfig, part: str) -> list[WorldScene]:
    logs = cfg[f"{part}_logs"]
    return load_scenes(cfg.world_root, part if logs is None else "trainval", None if logs is None else list(logs))


@hydra.main(config_path="pkg://navsim_recogdrive.configs", config_name="offline", version_base=None)
def main(cfg: DictConfig) -> None:
    """Run one stage."""
    pl.seed_everything(cfg.seed, workers=True)
    cache_path, output_dir = Path(cfg.cache_path), Path(cfg.output_dir)
    policy, config, trained = _policy(cfg)
    if cfg.stage == "cache":
        scenes = _scenes(cfg, "train") + _scenes(cfg, "val")
        computed = cache_scenes(scenes, policy.backbone, cache_path, config.cache_mode)
        logger.info("Cached %d scenes now, %d in all, in %s", computed, len(scenes), cache_path)
    elif cfg.stage == "train":
        objective = ImitationObjective(policy, config.imitation)
        checkpoint = train(
            OfflineModule(policy.planner, objective, config.optimizer, trained),
            objective,
            CachedScenes(_scenes(cfg, "train"), cache_path),
            CachedScenes(_scenes(cfg, "val"), cache_path),
            cfg.dataloader.params,
            cfg.trainer.params,
            read_identity(cache_path),
            config.ema,
            config.pictures,
            config.wandb,
        )
        logger.info("Last checkpoint: %s", checkpoint)
    elif cfg.stage == "score":
        if cfg.agent.checkpoint_path is None:
            raise InvalidSetting("stage=score needs agent.checkpoint_path=FILE (stage=train names its last.ckpt)")
        check_remembered_vlm(cfg.agent.checkpoint_path, policy.backbone.identity())
        policy.planner.to(resolve_device(config.device)).eval()
        agents = {"human": human, "constant_velocity": constant_velocity, "recogdrive": policy_planner(policy)}
        table = score_agents(load_scenes(cfg.world_root, "test"), agents, output_dir)
        logger.info("World scores (not PDM scores), means over the test scenes:\n%s", table.round(4).to_string())
    else:
        raise InvalidSetting(f"stage must be cache, train or score, found {cfg.stage!r}")


if __name__ == "__main__":
    main()
