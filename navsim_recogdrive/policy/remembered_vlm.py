"""A planner belongs to the VLM and the prompt that it was trained with: its checkpoints remember them.

Beside ``state_dict`` a checkpoint holds ``navsim_recogdrive.vlm``, a
:class:`~navsim_recogdrive.cache.identity.CacheIdentity` as plain values. Published checkpoints hold none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from navsim_recogdrive.cache.identity import CacheIdentity
from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.planner.checkpoints import read_checkpoint
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.settings import InvalidSetting

logger = logging.getLogger(__name__)

_KEY, _VLM = "navsim_recogdrive", "vlm"

# Not ``trained``: what was trained of a VLM is in the checkpoint itself.
COMPARED = tuple(name for name in CacheIdentity.DECIDING if name != "trained")
"""Fields in which the configured VLM must be the remembered one."""


class RememberVLM(pl.Callback):
    """Writes into every checkpoint which VLM the planner was trained with."""

    def __init__(self, vlm: CacheIdentity) -> None:
        self._vlm = vlm

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the entry."""
        checkpoint.setdefault(_KEY, {})[_VLM] = self._vlm.to_dict()


def read_remembered_vlm(checkpoint: str | Path) -> CacheIdentity | None:
    """The VLM that the planner in a checkpoint file was trained with; ``None`` if the file does not say.

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if it cannot be read.
        CacheIdentityError: if what it says is not whole.
    """
    remembered = read_checkpoint(checkpoint).get(_KEY)
    if not isinstance(remembered, Mapping) or _VLM not in remembered:
        return None
    return CacheIdentity.from_dict(remembered[_VLM])


def remembered_vlm_config(checkpoint: str | Path) -> VLMConfig | None:
    """How the VLM was run that the planner in a checkpoint file was trained with, without its path.

    A prompt profile is remembered by its fingerprint alone, so it is left to ``auto``.

    Returns:
        Cameras, lengths and dtype; ``None`` if the file does not say.

    Raises:
        FileNotFoundError, PlannerCheckpointError, CacheIdentityError: as :func:`read_remembered_vlm`.
        InvalidSetting: if it says what this version cannot do.
    """
    remembered = read_remembered_vlm(checkpoint)
    if remembered is None:
        return None
    cam_types = [name for name, cameras in CAMERA_SETS.items() if cameras == remembered.cameras]
    if not cam_types:
        raise InvalidSetting(
            f"the planner in {checkpoint} was trained with the cameras {list(remembered.cameras)}, this version knows "
            f"{CAMERA_SETS}"
        )
    return VLMConfig(
        dtype=remembered.dtype,
        hidden_length=remembered.hidden_length,
        max_tiles=remembered.max_tiles,
        cam_type=cam_types[0],
    )


def check_remembered_vlm(checkpoint: str | Path, configured: CacheIdentity, *, cached: bool = False) -> None:
    """Make sure that a planner gets hidden states of the VLM that it was trained with; warns of another dtype.

    Args:
        checkpoint: of the planner.
        configured: what the hidden states come from.
        cached: they come from a cache, whose dtype no setting changes.

    Raises:
        InvalidSetting: if the checkpoint remembers another, with both.
    """
    remembered = read_remembered_vlm(checkpoint)
    differing = [] if remembered is None else remembered.differences(configured, COMPARED)
    if remembered is not None and differing:
        raise InvalidSetting(
            f"the planner in {checkpoint} was trained with another VLM or prompt: {', '.join(differing)} "
            f"differ{'s' if len(differing) == 1 else ''}.\n  trained with: {remembered.describe()}\n"
            f"  configured:   {configured.describe()}\nSet agent.vlm (path, prompt_profile, hidden_length, max_tiles) "
            "and agent.cam_type as they were in training"
        )
    if remembered is not None and remembered.dtype != configured.dtype:
        _warn_of_dtype(remembered.dtype, configured.dtype, cached)


@lru_cache(maxsize=4)
def _warn_of_dtype(trained: str, configured: str, cached: bool) -> None:
    """Once per process: NAVSIM's workers make an agent per task."""
    logger.warning(
        "the planner was trained on hidden states computed in %s, %s computed in %s: plans differ from those of its "
        "validation by rounding. %s agent.vlm.dtype=%s for the same.",
        trained,
        "the cache's were" if cached else "here they are",
        configured,
        "Cache the split again with" if cached else "Set",
        trained,
    )
