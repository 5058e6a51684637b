"""InternVL as it is fine-tuned: logits for answers alone, parts frozen or adapted, stochastic depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import InternVLForConditionalGeneration

from navsim_recogdrive.pretraining.finetuning.conversations import IGNORED
from navsim_recogdrive.pretraining.finetuning.drop_path import add_drop_path
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings
from navsim_recogdrive.vlm import internvl
from navsim_recogdrive.vlm.adapters import LoRA, inject_lora, trained_parameters
from navsim_recogdrive.vlm.checkpoint_files import stored_tensors
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.tiling import normalize_tiles
from navsim_recogdrive.vlm.weights import build_model


class TrainedInternVL(InternVLForConditionalGeneration):
    """InternVL whose forward pass is its loss.

    The head runs over the rows before answer tokens only: a trajectory's answer is some 150 of 3000 tokens, and logits
    over the whole vocabulary would take 1.7 GB per sample.

    Attributes:
        frozen: modules that stay in evaluation mode.
        checkpointed: layers of frozen modules that gradients flow through.
    """

    frozen: tuple[nn.Module, ...] = ()
    checkpointed: tuple[nn.Module, ...] = ()

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        tiles: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Cross entropy of the answers.

        Args:
            input_ids: ``[B, S]``, filled up at the end.
            labels: ``[B, S]``, the token itself where it is taught, else -100.
            tiles: ``[T, tile, tile, 3]`` uint8 of all images in order.
            num_items_in_batch: taught tokens of the whole step, which the sum is divided by; ``None``: of this batch.
            kwargs: none are used; that they are taken tells the Trainer to count taught tokens.

        Returns:
            ``loss``: a scalar in float32.
        """
        embeddings = self.model.language_model.embed_tokens(input_ids)
        if tiles is None:
            # Every process uses every parameter in every batch, in one order: DDP and sharded training need it.
            embeddings = embeddings + 0.0 * self._image_rows(self._black_tile(input_ids.device)).sum()
        else:
            rows = self._image_rows(tiles).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter((input_ids == self.config.image_token_id)[..., None], rows)
        hidden = self.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        targets = labels[:, 1:]
        taught = targets != IGNORED
        logits = self.lm_head(hidden[:, :-1][taught]).float()
        loss = cross_entropy(logits, targets[taught], reduction="sum")
        count = taught.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = loss / count.to(loss.device).clamp(min=1)
        return {"loss": loss}

    def train(self, mode: bool = True) -> TrainedInternVL:
        """Training mode for all but :attr:`frozen`."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        for layer in self.checkpointed:
            # transformers computes again in training mode only. The flag is the layer's own: what is in it, dropout
            # among it, stays in evaluation mode.
            layer.training = mode
        return self

    def _image_rows(self, tiles: Tensor) -> Tensor:
        rows: Tensor = self.model.get_image_features(pixel_values=normalize_tiles(tiles)).pooler_output
        return rows

    def _black_tile(self, device: torch.device) -> Tensor:
        vision: Any = self.config.vision_config
        return torch.zeros((1, *vision.image_size, 3), dtype=torch.uint8, device=device)


def build_trained_model(
    directory: Path, architecture: InternVLArchitecture, image_token_id: int, settings: FinetuneSettings
) -> TrainedInternVL:
    """Load a checkpoint of either layout and make ready what is to be trained.

    Parameters are float32 where they are trained in full; under adapters the base model keeps the dtype that it
    computes in.

    Raises:
        VLMCheckpointError: if weights and configuration do not fit.
        PeftMissing: for adapters without peft.
        ValueError: for an attention kernel that is not installed, or target modules that do not exist.
    """
    tensors = stored_tensors(directory)
    plan = internvl.blueprint(architecture, tensors, image_token_id, with_head=True)
    full = settings.training == "full"
    model: TrainedInternVL = build_model(
        replace(plan, kind=TrainedInternVL),
        directory,
        tensors,
        dtype=torch.float32 if full else getattr(torch, settings.precision),
        device=torch.device("cpu"),
        attention=settings.attention,
    )
    parts = parts_of(model)
    if full:
        trained = [part for name, part in parts.items() if name not in settings.freeze]
        for modules in trained:
            for module in modules:
                module.requires_grad_(True)
        model.frozen = tuple(module for name in settings.freeze for module in parts[name])
    else:
        torch.manual_seed(settings.seed)
        inject_lora(model.model, settings.lora)
        for adapter in trained_parameters(model, "lora").values():
            adapter.requires_grad_(True)
        model.frozen = (*parts["vision"], *parts["projector"])
    if settings.drop_path and full and "vision" not in settings.freeze:
        add_drop_path(model.model.vision_tower, settings.drop_path)
    if settings.gradient_checkpointing:
        # transformers renames it
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if "language" in settings.freeze:  # what is trained lies before it
            model.checkpointed = tuple(model.model.language_model.layers)
    return model


def parts_of(model: Any) -> dict[str, tuple[nn.Module, ...]]:
    """The model's parts by the names in :data:`~navsim_recogdrive.pretraining.finetuning.settings.PARTS`."""
    base = model.model
    return {
        "vision": (base.vision_tower,),
        "projector": (base.multi_modal_projector,),
        "language": (base.language_model, model.lm_head),
    }


_BASE, _LORA = ".base_layer.", ".lora_"


def merged_weights(state: Mapping[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """A state dict with its adapters added to what they adapt, ``W + alpha / rank * B A``, under the plain names."""
    merged = {}
    for name, weight in state.items():
        if _LORA in name:
            continue
        if _BASE in name and name.endswith(".weight"):
            prefix = name.removesuffix("base_layer.weight")
            up, down = (state[f"{prefix}lora_{which}.default.weight"].float() for which in "BA")
            weight = (weight.float() + lora.alpha / lora.rank * up @ down).to(weight.dtype)
        merged[name.replace(_BASE, ".")] = weight
    return merged


def adapter_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters of a state dict."""
    return {name: weight for name, weight in state.items() if _LORA in name}
