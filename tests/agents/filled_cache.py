"""A hidden-state cache that NAVSIM's own ``Dataset`` fills, in this process or another, and its checks."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

SCENES = 5
FILES = ("recogdrive_hidden_state", "recogdrive_ego", "recogdrive_trajectory", "recogdrive_token")
LONG_AGO_S = 3600


class Cache:
    """One cache, filled with a few scenes by an agent per run, as ``run_dataset_caching.py`` does."""

    def __init__(self, root: Path, make_agent: Callable[..., Any], loader: Any) -> None:
        self.root = root
        self.loader = loader
        self.split: dict[str, Any] = {}
        self._make_agent = make_agent

    def host(self, **settings: Any) -> dict[str, Any]:
        return {"cache_path": str(self.root), "force_cache_computation": False, **self.split, **settings}

    def agent(self, host: dict[str, Any] | None = None, **settings: Any) -> Any:
        return self._make_agent(host=host or self.host(), **settings)

    def fill(self, force: bool = False, **settings: Any) -> list[str]:
        """Cache all scenes; returns the tokens of those computed now."""
        try:
            return self._fill(force, **settings)
        finally:
            gc.collect()  # the task is over, and what its builders have to say is said

    def _fill(self, force: bool, **settings: Any) -> list[str]:
        from navsim.planning.training.dataset import Dataset

        from navsim_recogdrive.agents import cache_use

        cache_use._OPENED.clear()  # as in a new process
        agent = self.agent(self.host(force_cache_computation=force), **settings)
        dataset = Dataset(
            scene_loader=self.loader,
            feature_builders=agent.get_feature_builders(),
            target_builders=agent.get_target_builders(),
            cache_path=str(self.root),
            force_cache_computation=force,
        )
        return [token for token in dataset._scene_loader.tokens if token in agent.computed]

    def fill_in_child(self, before: Callable[[], None] = lambda: None, **settings: Any) -> int:
        """The same in another process; returns its exit status, negative for a signal."""
        return wait(self.start_child(before, **settings))

    def start_child(self, before: Callable[[], None] = lambda: None, **settings: Any) -> int:
        child = os.fork()
        if child == 0:
            try:
                before()
                self.fill(**settings)
                os._exit(0)
            except OSError:
                os._exit(7)
            finally:
                os._exit(1)
        return child

    def check(self, full: bool = True, **settings: Any) -> Any:
        from navsim_recogdrive.cache.identity import read_identity
        from navsim_recogdrive.cache.scan import scan_cache
        from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT

        identity = read_identity(self.root)
        return scan_cache(self.root, HIDDEN_STATE_LAYOUT, full=full, identity=identity)

    def training_agent(self, root: Path | None = None, **settings: Any) -> Any:
        """An agent as ``run_training.py`` makes it, after its checks."""
        from navsim_recogdrive.agents.cache_use import check_for_training

        host = self.host(use_cache_without_dataset=True, cache_path=str(root or self.root))
        agent = self.agent(host, **settings)
        check_for_training(agent._host, agent.config, agent._policy.backbone)
        return agent

    def batch(self, agent: Any, root: Path | None = None, workers: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """All scenes that NAVSIM would train on."""
        from navsim.planning.training.dataset import CacheOnlyDataset

        dataset = CacheOnlyDataset(
            str(root or self.root), agent.get_feature_builders(), agent.get_target_builders(), log_names=None
        )
        (batch,) = DataLoader(dataset, batch_size=len(dataset), num_workers=workers)
        return batch

    def train(self, root: Path | None = None) -> int:
        """One step from the cache; returns the number of scenes."""
        agent = self.training_agent(root).train()
        features, targets = self.batch(agent, root)
        loss = agent.compute_loss(features, targets, agent.forward(features))
        loss.backward()
        assert torch.isfinite(loss)
        return len(targets["token"])

    def age(self) -> None:
        """Make all files an hour older, in their order: nobody is writing them."""
        for path in self.root.glob("*/*/*"):
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - LONG_AGO_S * 10**9))

    def files(self, name: str = FILES[0]) -> list[Path]:
        return sorted(self.root.glob(f"*/*/{name}.gz"))

    def snapshot(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.root.rglob("*")}


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
