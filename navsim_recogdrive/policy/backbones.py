"""One VLM per process, loaded when the first hidden state is asked for and shared by everything that needs it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from navsim_recogdrive.cache.hidden_state import HiddenState
from navsim_recogdrive.observation import Observation
from navsim_recogdrive.policy.configuration import InvalidSetting, VLMConfig
from navsim_recogdrive.vlm.identity import read_vlm_identity

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.backbone import Backbone

logger = logging.getLogger(__name__)

_LOADED: dict[tuple[VLMConfig, torch.device], Backbone] = {}
_LOCK = threading.RLock()


def resolve_device(device: str) -> torch.device:
    """``auto`` becomes this process's GPU (``LOCAL_RANK`` where a launcher set it), else the CPU; others as written.

    Raises:
        InvalidSetting: if a CUDA device is asked for that this process does not see.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            _warn_of_hidden_gpu()
        return torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InvalidSetting(f"agent.device must be auto, cpu, cuda or cuda:N, found {device!r}") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (resolved.index or 0):
            raise InvalidSetting(
                f"agent.device={device} but this process sees {count} CUDA device(s); use agent.device=auto"
            )
    return resolved


@lru_cache(maxsize=1)
def _warn_of_hidden_gpu() -> None:
    """Once per process."""
    logger.warning(
        "CUDA_VISIBLE_DEVICES is empty in this process (older Ray hides the GPU from tasks that ask for none): "
        "running on the CPU. Use worker=sequential or worker=single_machine_thread_pool to keep the GPU."
    )


def check_vlm_fits(config: VLMConfig, hidden_state_size: int) -> None:
    """Compare the VLM's hidden size, read from its ``config.json``, with the planner's; loads no weights.

    Raises:
        InvalidSetting: if they differ.
        ValueError: if ``config.path`` is not a VLM folder (``VLMCheckpointError``).
    """
    if config.path is None:
        return
    found = read_vlm_identity(
        config.path,
        hidden_length=config.hidden_length,
        prompt_profile=config.prompt_profile,
        max_tiles=config.max_tiles,
    ).hidden_size
    if found != hidden_state_size:
        raise InvalidSetting(
            f"the VLM in {config.path} has hidden size {found}, the planner expects {hidden_state_size}. "
            f"{hint_for_hidden_size(found)} or set agent.planner.hidden_state_size={found} and train a new planner"
        )


def hint_for_hidden_size(hidden_size: int) -> str:
    """Which agent takes hidden states of this size."""
    agent = {1536: "recogdrive_2b", 3584: "recogdrive_8b"}.get(hidden_size)
    return f"Use agent={agent}," if agent else "Use the VLM that the planner was trained with,"


class SharedBackbone:
    """A handle on the process-wide VLM of one configuration; cheap to make, loads on first use.

    Threads take turns (NAVSIM's thread-pool worker instantiates one agent per task, all in one process).

    Args:
        config: which VLM, and how.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, resolved when the VLM is loaded.
    """

    def __init__(self, config: VLMConfig, device: str = "auto") -> None:
        self._config = config
        self._device = device

    def load(self) -> Backbone:
        """The VLM itself.

        Raises:
            InvalidSetting: if no path is configured, or if a GPU would be used inside a forked DataLoader worker.
        """
        if self._config.path is None:
            raise InvalidSetting(
                "hidden states must be computed but no VLM is configured: set agent.vlm.path=FOLDER (or the "
                "environment variable VLM_PATH), or train from a complete cache with use_cache_without_dataset=true "
                "force_cache_computation=false"
            )
        with _LOCK:
            device = resolve_device(self._device)
            if device.type == "cuda" and torch.utils.data.get_worker_info() is not None:
                raise InvalidSetting(
                    "hidden states would be computed on the GPU inside a DataLoader worker, which CUDA does not allow. "
                    "Cache them first with run_dataset_caching.py (recommended), or set "
                    "dataloader.params.num_workers=0 dataloader.params.prefetch_factor=null"
                )
            key = (self._config, device)
            if key not in _LOADED:
                # Here, not above: training from a cache needs no VLM and should not wait for transformers to import.
                from navsim_recogdrive.vlm.backbone import load_backbone

                logger.info("Loading the VLM from %s (%s, %s)", self._config.path, self._config.dtype, device)
                _LOADED[key] = load_backbone(
                    self._config.path,
                    dtype=getattr(torch, self._config.dtype),
                    device=device,
                    attention=self._config.attention,
                    hidden_length=self._config.hidden_length,
                    prompt_profile=self._config.prompt_profile,
                    max_tiles=self._config.max_tiles,
                )
            return _LOADED[key]

    def hidden_states(self, observations: Sequence[Observation]) -> Tensor:
        """Hidden states [B, L, D] of ``observations``, on the VLM's device in its dtype."""
        with _LOCK:
            backbone = self.load()
            return backbone.hidden_states([backbone.prepare(observation) for observation in observations])

    def cacheable_hidden_state(self, observation: Observation) -> HiddenState:
        """The hidden state [L, D] of one observation as a CPU bf16 tensor that pickles itself small.

        Raises:
            ValueError: if the VLM produced values that are not finite.
        """
        with _LOCK:
            backbone = self.load()
            inputs = backbone.prepare(observation)
            rows = backbone.hidden_states([inputs])[0]
            return HiddenState.wrap(rows, padding_rows=len(rows) - len(inputs.token_ids))
