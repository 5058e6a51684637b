"""One VLM per process, loaded when the first hidden state is asked for and shared by everything that needs it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from navsim_recogdrive.cache.hidden_state import HiddenState
from navsim_recogdrive.cache.identity import CacheIdentity, package_version
from navsim_recogdrive.cache.scene_key import SceneKey
from navsim_recogdrive.observation import Observation
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.devices import (
    gpu_of_process,
    process_in_ray_without_gpu,
    warn_of_hidden_gpus,
    warn_of_unshared_gpus,
)
from navsim_recogdrive.policy.features import HIDDEN_STATE, SCENE_KEY, scene_key_of
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.vlm.adapters import TrainedVLM, parameter_dtype, restore
from navsim_recogdrive.vlm.identity import VLMIdentity, VLMSettings, read_hidden_size, read_vlm_identity

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.backbone import Backbone
    from navsim_recogdrive.vlm.generation import GeneratedText
    from navsim_recogdrive.vlm.preparation import ScenePreparation, VLMInputs

logger = logging.getLogger(__name__)

_LOADED: dict[tuple[VLMConfig, torch.device, bool, str | None], Backbone] = {}
_PREPARATIONS: dict[VLMSettings, ScenePreparation] = {}
_LOADING = threading.Lock()
_COMPUTING = threading.Lock()


def resolve_device(device: str, setting: str = "agent.device") -> torch.device:
    """``auto`` becomes this process's GPU (see :func:`gpu_of_process`), else the CPU; others as written.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        setting: what errors call it.

    Raises:
        InvalidSetting: if a CUDA device is asked for that this process does not see.
    """
    if device == "auto":
        if torch.cuda.is_available():
            gpus, ray_process = torch.cuda.device_count(), process_in_ray_without_gpu()
            if ray_process is not None:
                warn_of_unshared_gpus(gpus)
            return torch.device("cuda", gpu_of_process(gpus, os.environ, current_process().name, ray_process))
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            warn_of_hidden_gpus()
        return torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise InvalidSetting(f"{setting} must be auto, cpu, cuda or cuda:N, found {device!r}") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (resolved.index or 0):
            raise InvalidSetting(f"{setting}={device} but this process sees {count} CUDA device(s); use {setting}=auto")
    return resolved


def check_vlm_fits(config: VLMConfig, hidden_state_size: int) -> None:
    """Compare the VLM's hidden size, read from its ``config.json``, with the planner's; loads no weights.

    Raises:
        InvalidSetting: if they differ.
        ValueError: if there is no VLM at ``config.path`` (``VLMCheckpointError``).
    """
    if config.path is None:
        return
    found = read_hidden_size(config.settings())
    if found != hidden_state_size:
        raise InvalidSetting(
            f"the VLM in {config.path} has hidden size {found}, the planner expects {hidden_state_size}. "
            f"{hint_for_hidden_size(found)} or set agent.planner.hidden_state_size={found} and train a new planner"
        )


def hint_for_hidden_size(hidden_size: int) -> str:
    """Which agent takes hidden states of this size."""
    agent = {1536: "recogdrive_2b", 3584: "recogdrive_8b"}.get(hidden_size)
    return f"Use agent={agent}," if agent else "Use the VLM that the planner was trained with,"


def load_base(config: VLMConfig, device: torch.device, training: str, with_head: bool = False) -> Backbone:
    """Load a VLM of one's own, in the dtype that ``training`` needs."""
    # Here, not above: training from a cache needs no VLM and should not wait for transformers to import.
    from navsim_recogdrive.vlm.loading import load_backbone

    logger.info("Loading the VLM from %s (%s, %s)", config.path, config.dtype, device)
    return load_backbone(
        config.settings(),
        dtype=parameter_dtype(training, getattr(torch, config.dtype)),
        device=device,
        attention=config.attention,
        with_head=with_head,
    )


class HiddenStateSource(Protocol):
    """Where a policy gets hidden states: a VLM, or a cache of one."""

    def hidden_states(self, observations: Sequence[Observation]) -> Tensor:
        """Hidden states [B, L, D] of ``observations``, on any device."""
        ...


class SharedBackbone:
    """A handle on the process-wide, frozen VLM of one configuration; cheap to make, loads on first use.

    Threads take turns on the model (NAVSIM's thread-pool worker instantiates one agent per task, all in one process)
    and read and prepare their scenes beside each other, so that with several threads the GPU does not wait for the CPU.

    Args:
        config: which VLM, and how.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, resolved when the VLM is loaded.
        with_head: load the language modelling head too, to generate text.
        trained: what a checkpoint holds of a VLM that was trained together with its planner.
    """

    def __init__(
        self,
        config: VLMConfig,
        device: str = "auto",
        *,
        with_head: bool = False,
        trained: TrainedVLM | None = None,
    ) -> None:
        self.config = config
        self._device = device
        self._with_head = with_head
        self._trained = trained

    def load(self, device: torch.device | None = None) -> Backbone:
        """The VLM itself, on another device than the configured one if ``device`` is given.

        Raises:
            InvalidSetting: if no path is configured, or if a GPU would be used inside a forked DataLoader worker.
            VLMCheckpointError: for an unusable checkpoint, or another base VLM than the trained one's.
        """
        settings = self.config.settings()
        with _LOADING, torch.inference_mode(False):  # weights first needed in inference mode outlive it
            device = resolve_device(self._device) if device is None else device
            if device.type == "cuda" and torch.utils.data.get_worker_info() is not None:
                raise InvalidSetting(
                    "hidden states would be computed on the GPU inside a DataLoader worker, which CUDA does not allow. "
                    "Cache them first with run_dataset_caching.py (recommended), set agent.cache_hidden_state=false, "
                    "or dataloader.params.num_workers=0 dataloader.params.prefetch_factor=null"
                )
            trained = self._trained
            key = (self.config.frozen(), device, self._with_head, None if trained is None else trained.fingerprint)
            if key not in _LOADED:
                dtype = getattr(torch, self.config.dtype)
                backbone = load_base(
                    self.config, device, "frozen" if trained is None else trained.training, self._with_head
                )
                if trained is not None:
                    restore(backbone, trained, dtype)
                _LOADED[key] = backbone
                _PREPARATIONS.setdefault(settings, backbone.preparation)
            return _LOADED[key]

    @property
    def trained_fingerprint(self) -> str:
        """Fingerprint of what joint training made of the VLM, empty for the VLM as it is."""
        return "" if self._trained is None else self._trained.fingerprint

    @property
    def preparation(self) -> ScenePreparation:
        """What prepares scenes for this VLM; loads no weights.

        Raises:
            InvalidSetting: if no path is configured.
            VLMCheckpointError: for an unusable checkpoint.
        """
        settings = self.config.settings()
        with _LOADING:
            if settings not in _PREPARATIONS:
                from navsim_recogdrive.vlm.preparation import load_preparation

                _PREPARATIONS[settings] = load_preparation(settings)
            return _PREPARATIONS[settings]

    def prepare(self, observations: Sequence[Observation]) -> list[VLMInputs]:
        """Tiles and prompts of ``observations``, beside whatever the model computes; loads no weights.

        Tiles are cut on the VLM's GPU, which takes it a few milliseconds, or else on the CPU; both give the same bytes.
        """
        device = resolve_device(self._device)
        preparation = self.preparation
        return [preparation.prepare(one, None if device.type == "cpu" else device) for one in observations]

    def hidden_states_of(self, inputs: Sequence[VLMInputs], device: torch.device | None = None) -> Tensor:
        """Hidden states [B, L, D] of prepared scenes, on ``device`` or the configured one."""
        backbone = self.load(device)
        with _COMPUTING:
            return backbone.hidden_states(inputs)

    def hidden_states(self, observations: Sequence[Observation]) -> Tensor:
        """Hidden states [B, L, D] of ``observations``, on the VLM's device in its dtype."""
        self.load()
        return self.hidden_states_of(self.prepare(observations))

    def generate(self, observations: Sequence[Observation], max_new_tokens: int) -> list[GeneratedText]:
        """The VLM's answers to ``observations`` as text, see :func:`~navsim_recogdrive.vlm.generation.generate`."""
        from navsim_recogdrive.vlm.generation import generate

        backbone = self.load()
        inputs = self.prepare(observations)
        with _COMPUTING:
            return generate(backbone, inputs, max_new_tokens)

    def identity(self, mode: str = "bf16") -> CacheIdentity:
        """What a cache of this VLM's hidden states is, stored in ``mode``; reads no weights.

        Raises:
            InvalidSetting: if no path is configured.
            VLMCheckpointError: for an unusable checkpoint.
        """
        settings = self.config.settings()
        found = _read_identity(settings)
        return CacheIdentity(
            vlm=Path(settings.path).name,
            model=found.model,
            trained=self.trained_fingerprint,
            prompt=found.profile,
            cameras=settings.cameras,
            hidden_size=found.hidden_size,
            hidden_length=found.hidden_length,
            max_tiles=settings.max_tiles,
            dtype=self.config.dtype,
            mode=mode,
            package=package_version(),
        )

    def cacheable_features(self, observation: Observation, mode: str = "bf16") -> dict[str, Tensor]:
        """Scene key [16] uint8 and hidden state [L, D] of one observation as CPU tensors that pickle themselves small.

        Args:
            observation: of the scene.
            mode: how the hidden state is stored, one of :data:`~navsim_recogdrive.cache.codec.MODES`.

        Raises:
            ValueError: if the VLM produced values that are not finite.
        """
        self.load()
        (inputs,) = self.prepare([observation])
        return self.features_of(observation, inputs, self.hidden_states_of([inputs])[0], mode)

    def features_of(
        self, observation: Observation, inputs: VLMInputs, hidden_state: Tensor, mode: str
    ) -> dict[str, Tensor]:
        """Those of :meth:`cacheable_features`, from an observation's prepared inputs and its hidden state [L, D]."""
        rows = hidden_state.cpu()
        padding_rows = len(rows) - len(inputs.token_ids)
        preparation = self.preparation
        key = scene_key_of(observation, preparation.cameras, preparation.profile)
        # The key first: an index of a cache reads the first kilobyte of each file.
        return {
            SCENE_KEY: SceneKey.wrap(key),
            HIDDEN_STATE: HiddenState.wrap(rows, padding_rows, mode, self.identity(mode).origin),
        }


@lru_cache(maxsize=8)
def _read_identity(settings: VLMSettings) -> VLMIdentity:
    """Once per process: it reads samples of every weight."""
    return read_vlm_identity(settings)
