"""Batches of scenes whose features do not have one shape: an error that names the scenes, in place of torch's.

Image tiles are the features whose shape a data set decides: a Qwen VLM keeps the aspect ratio of an image, so images of
two sizes give tiles of two sizes, which do not fit into one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from navsim_recogdrive.policy.features import TOKEN

_SHOWN = 4


class UnequalScenes(ValueError):
    """Scenes of one batch with features of different shapes; names them."""


class SceneCollate:
    """``collate_fn`` of a loader of scenes: the loader's own, with errors that name scenes.

    Args:
        then: the loader's own ``collate_fn``.
    """

    def __init__(self, then: Callable[[list[Any]], Any]) -> None:
        self._then = then

    def __call__(self, samples: list[Any]) -> Any:
        """The batch of some samples, each ``(features, targets)``.

        Raises:
            UnequalScenes: if a feature has several shapes, naming their scenes.
        """
        try:
            return self._then(samples)
        except RuntimeError as error:
            if (described := _unequal(samples)) is None:
                raise
            raise UnequalScenes(described) from error


def name_unequal_scenes(loader: DataLoader[Any]) -> None:
    """Let the loader's batches be made by a :class:`SceneCollate`; a second call does nothing."""
    if not isinstance(loader.collate_fn, SceneCollate):
        loader.collate_fn = SceneCollate(loader.collate_fn)


def _unequal(samples: Sequence[Any]) -> str | None:
    """What differs between the features of ``samples``; ``None`` if nothing does."""
    if not all(isinstance(one, (tuple, list)) and one and isinstance(one[0], Mapping) for one in samples):
        return None
    for name, first in samples[0][0].items():
        if not isinstance(first, Tensor):
            continue
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for index, (features, *targets) in enumerate(samples):
            token = targets[0].get(TOKEN) if targets and isinstance(targets[0], Mapping) else None
            by_shape.setdefault(tuple(features[name].shape), []).append(str(token or f"number {index} of the batch"))
        if len(by_shape) > 1:
            found = "; ".join(f"{list(shape)} in {_shortened(tokens)}" for shape, tokens in by_shape.items())
            return (
                f"the scenes of a batch have {name} of several shapes: {found}. The cameras' images must have one "
                "size: leave the scenes of the other size out (train_test_split.scene_filter, or their folders in the "
                "cache), resize their images and cache them again, or set dataloader.params.batch_size=1"
            )
    return None


def _shortened(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return f"{'scenes' if len(tokens) > 1 else 'scene'} {', '.join(tokens[:_SHOWN])}{more}"
