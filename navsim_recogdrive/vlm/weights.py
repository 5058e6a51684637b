"""Stored tensors into a transformers model, strictly and without a second copy.

The model is built empty on its device and each stored tensor is copied straight into place, so the peak is about one
model. Which stored tensor fills which parameter is settled before a byte of data is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from navsim_recogdrive.vlm.attention import kernel_name
from navsim_recogdrive.vlm.checkpoint_files import StoredTensor, VLMCheckpointError, listed

Rename = Callable[[str], tuple[str, ...]]
"""The parameters a stored tensor fills: one; several for a fused one, chunked along dim 0; none if it is left out."""


@dataclass(frozen=True)
class Blueprint:
    """How transformers builds one model.

    Attributes:
        kind: class of the model.
        config: its configuration.
        rename: names in the files to names in the model.
    """

    kind: type[Any]
    config: Any
    rename: Rename


def split_head(built: Any) -> tuple[Any, Any]:
    """``(generator, model)``: a model with its language modelling head and its base, or ``None`` and a base.

    Over 2800 rows the head would cost more than a tenth of the whole forward pass and 1.7 GB (2B), so hidden states are
    computed without it.
    """
    return (built, built.model) if hasattr(built, "lm_head") else (None, built)


def build_model(
    blueprint: Blueprint,
    directory: Path,
    tensors: dict[str, StoredTensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
) -> Any:
    """Build a model of transformers and stream its weights in.

    Args:
        blueprint: how it is built.
        directory: the checkpoint, for error messages.
        tensors: from :func:`~navsim_recogdrive.vlm.checkpoint_files.stored_tensors`.
        dtype: of the parameters.
        device: where the model is built.
        attention: one of :data:`~navsim_recogdrive.vlm.architecture.ATTENTION_KERNELS`.

    Returns:
        The model in evaluation mode, its parameters not requiring gradients.

    Raises:
        VLMCheckpointError: naming missing and unexpected weights and those of another shape than the configuration's
            (the first 8 of each; the log has all), those that are not finite, or what transformers has against the
            configuration.
        ValueError: for an attention kernel that is unknown or not installed.
    """
    kernel = kernel_name(attention)
    try:
        with torch.device("meta"):
            model = blueprint.kind._from_config(blueprint.config, attn_implementation=kernel, dtype=dtype)
    except ImportError:  # of an attention kernel's package; says nothing about the checkpoint
        raise
    except Exception as error:
        raise VLMCheckpointError(
            f"{directory / 'config.json'}: transformers' {blueprint.kind.__name__} cannot be built as it says "
            f"({type(error).__name__}: {error}); download the checkpoint again"
        ) from error
    model.requires_grad_(False).eval()
    sources = _sources(directory, model, tensors, blueprint.rename)
    model.to_empty(device=device)
    _rebuild_buffers(model, device)
    model.tie_weights()  # to_empty gave tied parameters memory of their own

    destinations = model.state_dict()  # shares the parameters' memory
    broken = []
    for file, names in _by_file(tensors):
        with safe_open(file, framework="pt", device="cpu") as stream:
            for name in names:
                natives = sources[name]
                if not natives:
                    continue
                stored = stream.get_tensor(name)
                if not all_finite(stored):
                    broken.append(name)
                parts = stored.chunk(len(natives))
                for native, part in zip(natives, parts, strict=True):
                    destinations[native].copy_(part)
    if broken:
        shown = listed(f"weights of {directory} that are not finite", broken)
        raise VLMCheckpointError(
            f"{directory}: weights that are not finite: {shown}; a file is damaged, or the training has diverged: "
            "download the checkpoint again, or use an earlier one"
        )
    return model


def all_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds neither NaN nor infinity."""
    # The sum takes one pass without a copy; that of huge values overflows.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _sources(
    directory: Path, model: nn.Module, tensors: dict[str, StoredTensor], rename: Rename
) -> dict[str, tuple[str, ...]]:
    """Match stored names with parameters."""
    parameters: dict[str, Tensor] = model.state_dict()
    sources = {stored: rename(stored) for stored in tensors}
    filled: dict[str, str] = {}
    for stored, names in sources.items():
        for native in names:
            if native in filled:
                raise VLMCheckpointError(
                    f"{directory}: {filled[native]} and {stored} are the same weight in two layouts; download the "
                    "checkpoint again into an empty folder"
                )
            filled[native] = stored
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing = [native for native in parameters if native not in filled and tied.get(native) not in filled]
    unexpected = [stored for stored, names in sources.items() if not set(names) <= parameters.keys()]
    misshapen = []
    for stored, names in sources.items():
        if not names or stored in unexpected:
            continue
        shape = parameters[names[0]].shape
        expected = (shape[0] * len(names), *shape[1:])
        if tensors[stored].shape != expected:
            misshapen.append(f"{stored} {list(tensors[stored].shape)} (config.json asks for {list(expected)})")
    if missing or unexpected or misshapen:
        raise _mismatch(directory, missing, unexpected, misshapen)
    return sources


def _mismatch(directory: Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> VLMCheckpointError:
    """An error that names all three kinds, to be raised; lists that it shortens are logged in full."""
    other = "config.json and the weights are of different checkpoints"
    kinds = (
        (unexpected, "weights that config.json has no place for", other),
        (missing, "missing weights (by their names in transformers)", "download the checkpoint again"),
        (misshapen, "weights of another shape", other),
    )
    found = [f"{what}: {listed(f'{what} of {directory}', names)}; {fix}" for names, what, fix in kinds if names]
    return VLMCheckpointError(f"{directory}: " + "; ".join(found))


def _rebuild_buffers(model: nn.Module, device: torch.device) -> None:
    """Compute the rotary frequencies anew, in float32: buffers without stored values.

    Raises:
        RuntimeError: if transformers keeps another buffer that no checkpoint fills; its value would be garbage.
    """
    for name, module in list(model.named_modules()):
        buffers = dict(module.named_buffers(recurse=False))
        if not buffers:
            continue
        if set(buffers) <= {"inv_freq", "original_inv_freq"}:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, _fresh_rotary(module, device))
        else:
            raise RuntimeError(f"this transformers version keeps buffers that no checkpoint fills: {name} {[*buffers]}")


def _fresh_rotary(module: nn.Module, device: torch.device) -> nn.Module:
    if hasattr(module, "config"):
        return type(module)(config=module.config).to(device)
    return type(module)(module.dim, module.theta).to(device)  # a vision tower's


def _by_file(tensors: dict[str, StoredTensor]) -> Iterator[tuple[Path, list[str]]]:
    files = dict.fromkeys(tensor.file for tensor in tensors.values())
    for file in files:
        yield file, [name for name, tensor in tensors.items() if tensor.file == file]
