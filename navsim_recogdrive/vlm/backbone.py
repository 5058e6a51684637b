"""From an observation to hidden states: the one backbone that policies use, whatever kind of VLM is behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.vlm import language
from navsim_recogdrive.vlm.family import Family, ImageRows
from navsim_recogdrive.vlm.identity import VLMIdentity
from navsim_recogdrive.vlm.preparation import PAD_TOKEN, PromptTooLong, ScenePreparation, VLMInputs

__all__ = ["PAD_TOKEN", "Backbone", "PromptTooLong", "VLMInputs", "VLMOutOfMemory"]


class VLMOutOfMemory(MemoryError):
    """The GPU's memory does not hold what was asked of the VLM; says which setting lowers it."""


class Backbone:
    """A vision-language model that turns scenes into hidden states; made by ``load_backbone``.

    Frozen unless :attr:`trainable` is set: hidden states then carry no graph. Not a ``torch.nn.Module``, so that a
    module that holds one does not write gigabytes of frozen weights into its own checkpoints.

    Attributes:
        family: the model, and what is particular to its kind.
        tokenizer: the checkpoint's tokenizer.
        profile: how the prompt is written.
        cameras: what it sees, from left to right.
        max_tiles: most tiles of an image, a thumbnail not counted.
        preparation: cuts images and writes prompts for this backbone.
        hidden_size: width of a hidden state.
        hidden_length: rows of a hidden state, padding included.
        fingerprint: identity of the hidden states, see :class:`~navsim_recogdrive.vlm.identity.VLMIdentity`.
        autocast: dtype that a trainable model computes in where its parameters are kept in another; ``None`` for none.
    """

    def __init__(self, family: Family, preparation: ScenePreparation, identity: VLMIdentity) -> None:
        self.family = family
        self.preparation = preparation
        self.tokenizer = preparation.tokenizer
        self.profile = preparation.profile
        self.cameras = preparation.cameras
        self.max_tiles = preparation.max_tiles
        self.hidden_size = identity.hidden_size
        self.hidden_length = identity.hidden_length
        self.fingerprint = identity.fingerprint
        self._trainable = False
        self.autocast: torch.dtype | None = None
        self._image_token_id = preparation.image_token_id
        self._pad_token_id = preparation.pad_token_id
        self._prefix_ids = preparation.prefix_ids
        self._constants: tuple[language.Prefix, Tensor] | None = None

    @property
    def model(self) -> Any:
        """Transformers' base model."""
        return self.family.model

    @property
    def device(self) -> torch.device:
        """Where hidden states are computed."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the hidden states."""
        dtype: torch.dtype = self.autocast or self.model.dtype
        return dtype

    @property
    def trainable(self) -> bool:
        """Hidden states carry a graph where gradients are enabled, and nothing is kept that depends on parameters."""
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        self._trainable = trainable
        self.forget_prefix()  # it may be of parameters before training, or during it

    def forget_prefix(self) -> None:
        """To be called where parameters of a frozen model were changed: what they gave is computed anew."""
        self._constants = None

    def to(self, device: torch.device | str) -> Backbone:
        """Move the model; returns itself."""
        (self.family.generator or self.model).to(torch.device(device))
        self.forget_prefix()
        return self

    def prepare(self, observation: Observation) -> VLMInputs:
        """Cut the images into tiles (on the GPU where the model is on one) and write the prompt.

        Touches no state, so threads may share it.

        Raises:
            InvalidObservation: if the observation lacks an image.
            PromptTooLong: if the prompt has more than ``hidden_length`` tokens.
        """
        return self.preparation.prepare(observation, None if self.device.type == "cpu" else self.device)

    def content_rows(self, inputs: VLMInputs) -> Tensor:
        """Hidden states ``[S, hidden_size]`` of one scene without padding; raises as :meth:`hidden_states`."""
        return self.hidden_states([inputs])[0, self.hidden_length - len(inputs.token_ids) :]

    def hidden_states(self, inputs: Sequence[VLMInputs]) -> Tensor:
        """Hidden states of several scenes, each padded in front with the checkpoint's constant padding row.

        All tiles go through the vision tower together, and all prompts, from where they begin to differ, through the
        language model. A scene's rows are those it would have by itself, up to the rounding of the dtype.

        Args:
            inputs: B scenes; at least one.

        Returns:
            ``[B, hidden_length, hidden_size]`` on the model's device, in :attr:`dtype`.

        Raises:
            PromptTooLong: if a prompt has more than ``hidden_length`` tokens.
            VLMOutOfMemory: if the GPU's memory is too small.
            ValueError: for an empty batch, tiles of a size that the model does not take, a prompt with another number
                of image tokens than its tiles need, or one that does not begin as the profile's prompts do.
        """
        if not inputs:
            raise ValueError("hidden_states needs at least one scene")
        for scene in inputs:
            self.check(scene)
        with self.computing(len(inputs)):
            # Training runs whole prompts: a graph through the prefix's cache would defeat gradient checkpointing, whose
            # layers drop such a cache whenever they are in training mode.
            whole = self.trainable and (torch.is_grad_enabled() or self.model.language_model.training)
            prefix, padding = (None, self._compute_padding()) if whole else self._prefix_and_padding()
            rows = self._language_rows(inputs, prefix)
            before = [] if prefix is None else [prefix.rows]
            hidden = []
            for scene, content in zip(inputs, rows, strict=True):
                padded = self.hidden_length - len(scene.token_ids)
                length = len(scene.token_ids) - sum(map(len, before))
                hidden.append(torch.cat([padding.expand(padded, -1), *before, content[:length]]))
            return torch.stack(hidden).to(self.dtype)

    @property
    def prefix_rows(self) -> Tensor:
        """``[P, hidden_size]``: the rows of the tokens that all prompts begin with (P = 291 as published)."""
        with self.computing(1):
            return self._prefix_and_padding()[0].rows

    @property
    def padding_row(self) -> Tensor:
        """``[hidden_size]``: what every padded row holds, see :func:`~navsim_recogdrive.vlm.language.padding_row`."""
        with self.computing(1):
            return self._prefix_and_padding()[1]

    def shared_prefix(self) -> language.Prefix | None:
        """What is kept of the tokens that all prompts begin with; ``None`` while the model is trainable.

        To be called within :meth:`computing`; never to be written to.
        """
        return None if self.trainable else self._prefix_and_padding()[0]

    def _prefix_and_padding(self) -> tuple[language.Prefix, Tensor]:
        if self._constants is not None and not self.trainable:
            return self._constants
        token_ids = torch.from_numpy(self._prefix_ids).to(self.device)
        with torch.inference_mode(False), torch.no_grad():  # kept for calls outside of inference mode
            self._constants = language.compute_prefix(self.model.language_model, token_ids), self._compute_padding()
        return self._constants

    def _compute_padding(self) -> Tensor:
        return language.padding_row(self.model.language_model, self._pad_token_id)

    def _language_rows(self, inputs: Sequence[VLMInputs], prefix: language.Prefix | None) -> Tensor:
        """Rows ``[B, S, D]`` behind the prefix, filled up at the end to the longest prompt."""
        skipped = 0 if prefix is None else len(self._prefix_ids)
        longest = max(len(scene.token_ids) for scene in inputs)
        token_ids = np.full((len(inputs), longest), self._pad_token_id, dtype=np.int64)
        positions = []
        for row, scene in zip(token_ids, inputs, strict=True):
            row[: len(scene.token_ids)] = scene.token_ids
            positions.append(self.family.positions(row, scene.tile_size))
        ids = torch.from_numpy(token_ids[:, skipped:]).to(self.device)
        embeddings = self.model.language_model.embed_tokens(ids)
        on_image = ids == self._image_token_id
        images = self._image_rows(inputs)
        embeddings = embeddings.masked_scatter(on_image[..., None], images.rows.to(embeddings.dtype))
        stacked = torch.from_numpy(np.stack(positions, axis=-2)[..., skipped:]).to(self.device)
        deeper: dict[str, Any] = {}
        if images.deeper:
            deeper = {"visual_pos_masks": on_image, "deepstack_visual_embeds": list(images.deeper)}
        return language.continue_prefix(self.model.language_model, prefix, embeddings, stacked, **deeper)

    def _image_rows(self, inputs: Sequence[VLMInputs]) -> ImageRows:
        """Rows ``[N, D]`` of all tiles of all scenes, in their order; tiles of one size go through together."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, scene in enumerate(inputs):
            by_size.setdefault(scene.tile_size, []).append(index)
        rows: list[tuple[Tensor, ...]] = [()] * len(inputs)
        for indices in by_size.values():
            tiles = [_on(inputs[index].tiles, self.device) for index in indices]
            found = self.family.image_rows(torch.cat(tiles))
            layers = [layer.split([len(one) for one in tiles]) for layer in (found.rows, *found.deeper)]
            for index, *parts in zip(indices, *layers, strict=True):
                rows[index] = tuple(part.flatten(0, 1) for part in parts)
        first, *deeper = (torch.cat(layer) for layer in zip(*rows, strict=True))
        return ImageRows(first, tuple(deeper))

    @contextmanager
    def computing(self, scenes: int, lower: str | None = None) -> Iterator[None]:
        """The model's own precision, whatever the trainer's; no graph where frozen; memory errors explained.

        Args:
            scenes: how many are computed at once.
            lower: the settings that a memory error names; those of hidden states by default.

        Raises:
            VLMOutOfMemory: if the GPU's memory is too small for what is computed within.
        """
        kind = self.device.type
        precision = torch.autocast(kind, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None)
        try:
            with precision, torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
                yield
        except torch.cuda.OutOfMemoryError as error:
            fixes = [f"lower {lower}"] if lower is not None else []
            if lower is None and scenes > 1:
                fixes.append("lower dataloader.params.batch_size")
            elif lower is None:  # it is not the scene that is too large
                fixes.append("let fewer workers share the GPU (worker.workers_per_gpu, worker.threads_per_node)")
            if self.trainable and not self.model.language_model.is_gradient_checkpointing:
                fixes.append("set agent.vlm.gradient_checkpointing=true")
            fixes += ["use the 2B model", "free the GPU of other processes"]
            raise VLMOutOfMemory(
                f"the GPU's memory is too small for the VLM with {scenes} scene(s) at once: {', or '.join(fixes)}. "
                f"{error}"
            ) from error

    def check(self, scene: VLMInputs) -> None:
        """Make sure that one scene was prepared for this backbone; raises as :meth:`hidden_states`."""
        self.preparation.check(scene)


def _on(tiles: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    if isinstance(tiles, Tensor):
        if tiles.is_cuda:  # cut on another stream, whose next tiles must not take this memory too early
            tiles.record_stream(torch.cuda.current_stream(tiles.device))
        return tiles.to(device)
    return torch.from_numpy(np.require(tiles, requirements=["C", "W"])).to(device)
