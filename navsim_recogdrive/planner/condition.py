"""What the planner knows of a scene, computed once and shared by every denoising step and every sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """A batch of B scenes as the denoiser reads them. Made by :meth:`~.planner.DiffusionPlanner.condition`.

    Attributes:
        context: ``[B, E]``, the part of the DiT's input that does not depend on the noisy actions: the history
            embedding and the mean of the projected hidden states, through their share of the fusion projector.
        ego_status: ``[B, E]`` ego-status embedding, added to every timestep embedding.
        keys_and_values: for each cross-attention block a pair of ``[B, heads, S, head_dim]``.
    """

    context: Tensor
    ego_status: Tensor
    keys_and_values: tuple[tuple[Tensor, Tensor], ...]

    @property
    def batch_size(self) -> int:
        """Number of scenes, B."""
        return len(self.context)
