"""Denoising methods. Adding one is adding a file with a :class:`~.base.DenoisingMethod` and its line here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..configuration import Method
from .base import DenoisingMethod, DenoisingSteps, LogProbUnsupported, TrainingExample, Transition
from .ddim import DDIM
from .ddpm import DDPM
from .flow import FlowMatching

__all__ = [
    "DDIM",
    "DDPM",
    "DenoisingMethod",
    "DenoisingSteps",
    "FlowMatching",
    "LogProbUnsupported",
    "TrainingExample",
    "Transition",
    "denoising_method",
]


def denoising_method(name: Method, tables: Mapping[str, Tensor]) -> DenoisingMethod:
    """The method of that name over the tables of its noise schedule (flow matching has none and reads none)."""
    if name == "flow":
        return FlowMatching()
    return DDIM(tables) if name == "ddim" else DDPM(tables)
