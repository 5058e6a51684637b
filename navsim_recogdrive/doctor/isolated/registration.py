"""Step ``hydra``: does ``agent=NAME`` resolve through this package's search-path plugin, and to which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

_NAME = "navsim_recogdrive_doctor"
_DATALOADER = {"batch_size": None, "num_workers": 4, "prefetch_factor": 2}  # NAVSIM's defaults but for the first


def run(parameters: dict[str, Any], results: dict[str, Any], argument: str) -> dict[str, Any]:
    """Compose the agent's settings as a runner does.

    NAVSIM's own split is not composed: parsing the tokens of navtrain takes 10 s.

    Returns:
        ``agent`` and ``dataloader`` settings, and ``sources``: provider and path of all that hold the agent's config,
        in Hydra's order, of which the first counts.
    """
    agent, folder = parameters["agent"], parameters["training_config"]
    store = {"defaults": ["_self_", {"agent": agent}], "dataloader": {"params": _DATALOADER}}
    ConfigStore.instance().store(name=_NAME, node=OmegaConf.create(store))
    start = (
        initialize_config_dir(folder, version_base=None)
        if folder and Path(folder).is_dir()
        else initialize(config_path=None, version_base=None)
    )
    with start:
        sources = [
            {"provider": source.provider, "path": source.path}
            for source in GlobalHydra.instance().config_loader().get_sources()
            if source.available() and source.is_config(f"agent/{agent}")
        ]
        config = compose(_NAME, overrides=list(parameters["overrides"]))
    settings = config.agent
    OmegaConf.set_struct(settings, False)
    settings.pop("host", None)  # interpolates the runner's own config
    return {
        "agent": OmegaConf.to_container(settings, resolve=True),
        "dataloader": OmegaConf.to_container(config.dataloader.params, resolve=True),
        "sources": sources,
    }
