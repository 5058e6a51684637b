"""GPU memory that a stage takes, by arithmetic: counts of numbers times their bytes, nothing measured."""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT = 4
_ADAMW = 16  # bytes per trained parameter: weight, gradient and two moments, float32
_CUDA_CONTEXT = 1.0e9


@dataclass(frozen=True)
class VLMSize:
    """Sizes of a VLM.

    Attributes:
        parameters: without the language modelling head.
        layers: of the language model.
        hidden_size: of the language model.
        intermediate_size: of its MLP.
        bytes_per_value: 2 for bfloat16.
    """

    parameters: float
    layers: int
    hidden_size: int
    intermediate_size: int
    bytes_per_value: int = 2

    @property
    def weights(self) -> float:
        """Bytes."""
        return self.parameters * self.bytes_per_value

    def activations(self, rows: int) -> float:
        """Bytes of one layer's inner values for one scene of ``rows`` tokens."""
        return rows * (6.0 * self.hidden_size + 3 * self.intermediate_size) * self.bytes_per_value

    def kept_activations(self, rows: int, checkpointing: bool) -> float:
        """Bytes that the backward pass of one scene needs, with or without gradient checkpointing."""
        inputs = float(self.layers) * rows * self.hidden_size * self.bytes_per_value
        return inputs + self.activations(rows) * (1 if checkpointing else self.layers)

    def adapters(self, rank: int) -> float:
        """Parameters of adapters of ``rank`` in the seven linear layers of every decoder layer, at most."""
        return float(rank) * self.layers * (8 * self.hidden_size + 3 * (self.hidden_size + self.intermediate_size))


VLM_2B = VLMSize(1.86e9, 28, 1536, 8960)
VLM_8B = VLMSize(7.40e9, 28, 3584, 18944)
"""InternVL3-2B and -8B: InternViT-300M, the projector, Qwen2.5-1.5B or -7B."""


@dataclass(frozen=True)
class PlannerSize:
    """Sizes of a planner and of what it reads.

    Attributes:
        parameters: of the planner.
        layers: of its DiT.
        width: of its DiT, heads times head width.
        rows: of a hidden state.
        hidden_size: of a hidden state.
    """

    parameters: float
    layers: int
    width: int
    rows: int
    hidden_size: int

    @property
    def condition(self) -> float:
        """Bytes of one scene's condition in float32: keys and values of every other layer."""
        return float(self.layers) * self.rows * self.width * _FLOAT

    def training(self, batch: int) -> dict[str, float]:
        """Bytes by what takes them, for scenes whose hidden states are given."""
        hidden_states = batch * self.rows * float(self.hidden_size) * (2 + _FLOAT)
        return {
            "planner, gradients, optimiser": self.parameters * _ADAMW,
            f"hidden states and conditions of {batch} scenes": hidden_states + 2 * batch * self.condition,
        }


def needed(
    stage: str,
    vlm: VLMSize | None,
    planner: PlannerSize | None,
    *,
    batch: int = 1,
    training: str = "frozen",
    checkpointing: bool = False,
    lora_rank: int = 16,
    rows: int = 2800,
) -> dict[str, float]:
    """Bytes by what takes them.

    Args:
        stage: ``cache``, ``train``, ``rl``, ``evaluate`` or ``submit``.
        vlm: where the stage runs one.
        planner: where the stage runs one.
        batch: scenes in a training step on one GPU.
        training: what of the VLM is trained: ``frozen``, ``lora`` or ``full``.
        checkpointing: of its gradients.
        lora_rank: of its adapters.
        rows: tokens of a scene.
    """
    parts: dict[str, float] = {"CUDA itself": _CUDA_CONTEXT}
    if vlm is not None:
        if training == "full" and stage == "train":
            parts["VLM, gradients, optimiser"] = vlm.parameters * _ADAMW
        else:
            parts["VLM"] = vlm.weights
        if training == "lora" and stage == "train":
            parts["adapters, gradients, optimiser"] = vlm.adapters(lora_rank) * _ADAMW
        if training == "frozen" or stage != "train":
            parts["one layer of the VLM at work"] = vlm.activations(rows) * (batch if stage == "train" else 1)
        else:
            parts[f"the VLM's activations for {batch} scenes"] = batch * vlm.kept_activations(rows, checkpointing)
    if planner is not None:
        if stage in ("train", "rl"):
            parts.update(planner.training(batch))
        else:
            parts["planner"] = planner.parameters * _FLOAT + planner.condition
        if stage == "rl":
            parts["reference planner"] = planner.parameters * _FLOAT + batch * planner.condition
    return parts
