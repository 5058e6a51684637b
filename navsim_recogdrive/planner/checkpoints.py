"""Reading planner weights: published Lightning checkpoints, our own, plain state dicts and safetensors files.

A planner's entries may stand behind a prefix (``agent.action_head.`` in a Lightning checkpoint). Loading is strict:
what does not fit is listed, with a guess at the cause.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .configuration import HIDDEN_STATE_SIZES, Method, PlannerConfig
from .planner import DiffusionPlanner

MARKER = "feature_encoder.weight"
"""The entry whose key tells where a planner's entries begin."""

REFERENCE_PREFIX = "old_policy."
"""Copies of the reference policy in a published RL checkpoint, inside the planner's own prefix."""

WEIGHTS = ("averaged", "raw")
"""Which weights of a checkpoint to read. Of a run that kept no average ``averaged`` reads the only ones there are."""

RAW_WEIGHTS = "current_model_state"
"""Entry with the raw weights beside an average in ``state_dict``, named as by Lightning's weight averaging."""

LISTED = 12
"""Differences listed per kind before the rest is counted."""


COMPARED = (
    "method",
    "num_heads",
    "head_dim",
    "num_layers",
    "output_size",
    "mlp_hidden_size",
    "horizon",
    "num_train_timesteps",
    "num_inference_steps",
)
"""Fields of a configuration named when a checkpoint does not fit."""


class PlannerCheckpointError(ValueError):
    """A file or state dict that does not hold this planner's weights."""


@dataclass(frozen=True)
class LoadReport:
    """What loading found.

    Attributes:
        prefix: what stood before the planner's keys, ``""`` for a plain state dict.
        loaded: entries loaded.
        set_aside: copies of a reference policy (``old_policy.*``) inside the prefix, not loaded.
        outside: entries outside the prefix (for instance a VLM's), not looked at.
    """

    prefix: str
    loaded: int
    set_aside: int
    outside: int


def load_planner_weights(
    planner: DiffusionPlanner, source: str | Path | Mapping[str, Tensor], weights: str = "averaged"
) -> LoadReport:
    """Load weights into a planner, strictly.

    The noise schedule is never taken from the file: it is compared with the planner's own float32 tables, to the
    precision of the file's dtype, and a different one is refused.

    Args:
        planner: built for the same sizes and method (see :func:`infer_planner_config`); its dtype and device stay.
        source: a ``.ckpt``, ``.pt`` or ``.pth`` file (read with ``weights_only=True``), a ``.safetensors`` file, or a
            state dict.
        weights: which of a file's, one of :data:`WEIGHTS`.

    Returns:
        What was loaded and what was left alone.

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if the file cannot be read, holds no planner, or differs; the planner is unchanged then.
    """
    entries, report = _planner_entries(source, weights)
    expected = planner.state_dict()
    _check_keys_and_shapes(entries, expected, planner.config, _name(source))
    tables = {name for name, _ in planner.named_buffers()} & expected.keys()
    _check_values(entries, expected, tables, _name(source))
    planner.load_state_dict({key: expected[key] if key in tables else entries[key] for key in expected})
    return report


def infer_planner_config(source: str | Path | Mapping[str, Tensor]) -> PlannerConfig:
    """The configuration that a checkpoint's shapes tell.

    Args:
        source: as in :func:`load_planner_weights`.

    Returns:
        Sizes from the shapes, the method from the stored schedules (ddim and ddpm store theirs, flow has none).

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if the file cannot be read, holds no planner, or not a whole one.
    """
    entries, _ = _planner_entries(source)
    blocks = {key.split(".")[2] for key in entries if key.startswith("model.transformer_blocks.")}
    method: Method = "ddim" if "ddim_t" in entries else "ddpm" if "ddpm_betas" in entries else "flow"
    try:
        embedding, hidden_state_size = entries[MARKER].shape
        head_dim = len(entries["model.transformer_blocks.0.attn.q_norm.weight"])
        steps = {"num_train_timesteps": len(entries["ddpm_betas"])} if method != "flow" else {}
        if method == "ddim":
            steps["num_inference_steps"] = len(entries["ddim_t"])
        return PlannerConfig(
            hidden_state_size=hidden_state_size,
            num_heads=embedding // head_dim,
            head_dim=head_dim,
            num_layers=len(blocks),
            output_size=len(entries["model.final_layer.linear.weight"]),
            mlp_hidden_size=len(entries["his_traj_encoder.fc1.weight"]),
            horizon=len(entries["position_embedding.weight"]),
            method=method,
            **steps,
        )
    except (KeyError, ValueError) as error:
        raise PlannerCheckpointError(f"{_name(source)} does not hold a whole diffusion planner: {error}") from error


def _planner_entries(
    source: str | Path | Mapping[str, Tensor], weights: str = "averaged"
) -> tuple[dict[str, Tensor], LoadReport]:
    """The planner's entries of a source under their own keys, reference copies left out."""
    state = dict(source) if isinstance(source, Mapping) else read_state_dict(source, weights)
    prefix = _find_prefix(state, _name(source))
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    entries = {key: value for key, value in inside.items() if not key.startswith(REFERENCE_PREFIX)}
    return entries, LoadReport(prefix, len(entries), len(inside) - len(entries), len(state) - len(inside))


def read_state_dict(path: str | Path, weights: str = "averaged") -> dict[str, Tensor]:
    """The tensors of a checkpoint file by their keys; a ``.ckpt``, ``.pt`` or ``.pth`` is mapped into memory, not read.

    Args:
        path: of the file.
        weights: one of :data:`WEIGHTS`.

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if it cannot be read, or holds anything but tensors and plain values, or no raw weights
            where those are asked for.
        ValueError: for other ``weights``.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, found {weights!r}")
    content = read_checkpoint(path)
    if weights == "raw":
        if not isinstance(content.get(RAW_WEIGHTS), Mapping):
            raise PlannerCheckpointError(
                f"{path} holds no raw weights beside averaged ones ({RAW_WEIGHTS}), its run kept no average "
                "(agent.ema.decay): leave out agent.checkpoint_weights=raw"
            )
        content = content[RAW_WEIGHTS]
    elif isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """All that a checkpoint file holds, tensors mapped into memory; of a ``.safetensors`` its tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if it cannot be read, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no planner checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _unreadable(path, error) from error
    try:
        # Mapped into memory, so that a checkpoint's optimiser states are not read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # On what is no checkpoint torch fails with anything from KeyError to struct.error.
        found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found is None:
            raise _unreadable(path, error) from error
        raise PlannerCheckpointError(
            f"{path} cannot be read as tensors only (weights_only=True): it stores an object of {found[1]}. If you "
            "trust where it comes from, save its state dict alone as .safetensors and load that."
        ) from error
    if not isinstance(content, Mapping):
        raise PlannerCheckpointError(f"{path} must hold a state dict, found {type(content).__name__}")
    return content


def _unreadable(path: Path, error: Exception) -> PlannerCheckpointError:
    cause = type(error).__name__
    # Of an unpickling error torch's text advises weights_only=False, which runs whatever code the file names.
    if not isinstance(error, pickle.UnpicklingError) and str(error):
        cause += f": {str(error).splitlines()[0]}"
    return PlannerCheckpointError(
        f"{path} cannot be read as a checkpoint, was its download cut short, or is it another file in its place, such "
        f"as a Git LFS pointer? ({cause})"
    )


def _find_prefix(state: Mapping[str, Tensor], name: str) -> str:
    found = [key.removesuffix(MARKER) for key in state if key == MARKER or key.endswith("." + MARKER)]
    found = [prefix for prefix in found if not prefix.endswith(REFERENCE_PREFIX)]
    heads = [prefix for prefix in found if prefix.endswith("action_head.")]
    if len(found) > 1 and len(heads) == 1:
        return heads[0]
    if len(found) != 1:
        groups = sorted({".".join(key.split(".")[:2]) for key in state})
        raise PlannerCheckpointError(
            f"{name} must hold one diffusion planner (one entry '<prefix>{MARKER}'), found "
            f"{'several' if found else 'none'}. Its entries begin with: {_listing(groups) or 'nothing, it is empty'}"
        )
    return found[0]


def _check_keys_and_shapes(
    entries: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: PlannerConfig, name: str
) -> None:
    missing = [key for key in expected if key not in entries]
    unexpected = [key for key in entries if key not in expected]
    shapes = [
        f"{key} {list(entries[key].shape)} (expected {list(expected[key].shape)})"
        for key in expected
        if key in entries and entries[key].shape != expected[key].shape
    ]
    if not (missing or unexpected or shapes):
        return
    lines = [f"{name} does not fit this planner."]
    lines += [f"  {hint}" for hint in _hints(entries, config)]
    for title, found in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)):
        if found:
            lines.append(f"  {title} ({len(found)}): {_listing(found)}")
    raise PlannerCheckpointError("\n".join(lines))


def _hints(entries: Mapping[str, Tensor], config: PlannerConfig) -> list[str]:
    """Guesses at why a checkpoint does not fit."""
    if any(key.startswith("ego_status_encoder.") and "attn" in key for key in entries):
        return ["Its ego-status encoder is an attention; planners here (and the published ones) use an MLP."]
    try:
        found = infer_planner_config(entries)
    except PlannerCheckpointError:
        return []
    hints = []
    if found.hidden_state_size != config.hidden_state_size:
        shape = list(entries[MARKER].shape)
        hints.append(
            f"This looks like {_model_name(found.hidden_state_size)} checkpoint ({MARKER} {shape}) for "
            f"{_model_name(config.hidden_state_size)} planner."
        )
    for field in COMPARED:
        theirs, ours = getattr(found, field), getattr(config, field)
        stored = field != "num_inference_steps" or found.method == config.method == "ddim"
        stored = stored and (field != "num_train_timesteps" or "flow" not in (found.method, config.method))
        if stored and theirs != ours:
            hints.append(f"Its {field} is {theirs!r}, the planner's {ours!r}.")
    return hints


def _model_name(hidden_state_size: int) -> str:
    names = {size: f"an {name}" if name.startswith("8") else f"a {name}" for name, size in HIDDEN_STATE_SIZES.items()}
    return names.get(hidden_state_size, f"a {hidden_state_size}-d")


def _check_values(entries: Mapping[str, Tensor], expected: Mapping[str, Tensor], tables: Set[str], name: str) -> None:
    for key in tables:
        stored, ours = entries[key].float().cpu(), expected[key].float().cpu()
        rounding = 2 * torch.finfo(entries[key].dtype).eps if entries[key].is_floating_point() else 0.0
        tolerance = max(rounding, 1e-5)
        if not torch.allclose(stored, ours, rtol=tolerance, atol=tolerance):
            raise PlannerCheckpointError(
                f"{name} was trained with another noise schedule: {key} differs by up to "
                f"{(stored - ours).abs().max().item():.3g} from this planner's cosine schedule"
            )
    if "eta.eta_logit" in expected and not torch.isposinf(entries["eta.eta_logit"]).all():
        raise PlannerCheckpointError(
            f"{name} has eta.eta_logit {entries['eta.eta_logit'].tolist()}, expected [inf] (DDIM with eta = 1)"
        )
    broken = [
        key for key, value in entries.items() if key != "eta.eta_logit" and not torch.isfinite(value.float()).all()
    ]
    if broken:
        raise PlannerCheckpointError(f"{name} holds values that are not finite: {_listing(broken)}")


def _listing(items: list[str]) -> str:
    more = f", and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _name(source: str | Path | Mapping[str, Tensor]) -> str:
    return "the state dict" if isinstance(source, Mapping) else str(source)
