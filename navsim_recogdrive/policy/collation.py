"""Batches of scenes whose features do not fit together: an error that names the scenes, in place of torch's.

Image tiles are the features whose shape a data set decides: a Qwen VLM keeps the aspect ratio of an image, so images of
two sizes give tiles of two sizes, which do not fit into one tensor. All others differ where a cache was filled with
several settings or versions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from navsim_recogdrive.policy.features import IMAGE_TILES, TOKEN

_SHOWN = 4


class UnequalScenes(ValueError):
    """Scenes of one batch with features or targets of different shapes, or that lack some; names them."""


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
            UnequalScenes: if a feature or target has several shapes or is missing in some scenes, naming them.
        """
        try:
            return self._then(samples)
        except (RuntimeError, KeyError) as error:
            if (described := _unequal(samples)) is None:
                raise
            raise UnequalScenes(described) from error


def name_unequal_scenes(loader: DataLoader[Any]) -> None:
    """Let the loader's batches be made by a :class:`SceneCollate`; a second call does nothing."""
    if not isinstance(loader.collate_fn, SceneCollate):
        loader.collate_fn = SceneCollate(loader.collate_fn)


def _unequal(samples: Sequence[Any]) -> str | None:
    """What differs between the features and targets of ``samples``; ``None`` if nothing does."""
    if not all(isinstance(one, (tuple, list)) and one and isinstance(one[0], Mapping) for one in samples):
        return None
    scenes = [
        {name: value for part in one if isinstance(part, Mapping) for name, value in part.items()} for one in samples
    ]
    tokens = [str(scene.get(TOKEN) or f"number {index} of the batch") for index, scene in enumerate(scenes)]
    differing: dict[str, str] = {}
    for name in dict.fromkeys(name for scene in scenes for name in scene):
        by_shape: dict[str, list[str]] = {}
        for scene, token in zip(scenes, tokens, strict=True):
            value = scene.get(name)
            shape = f"{list(value.shape)} in" if isinstance(value, Tensor) else "without shape in"
            by_shape.setdefault(shape if name in scene else "missing in", []).append(token)
        if len(by_shape) > 1:
            differing[name] = ", ".join(f"{found} {_shortened(those)}" for found, those in by_shape.items())
    if not differing:
        return None
    listing = "; ".join(f"{name}: {found}" for name, found in differing.items())
    return f"the scenes of a batch have unequal features: {listing}. {_advice(differing)}"


def _advice(differing: Collection[str]) -> str:
    advice = []
    if IMAGE_TILES in differing:
        advice.append(
            "The cameras' images must have one size: leave the scenes of the other size out "
            "(train_test_split.scene_filter, or their folders in the cache), resize their images and cache them again, "
            "or set dataloader.params.batch_size=1"
        )
    if set(differing) - {IMAGE_TILES}:
        advice.append(
            "Where the scenes come from a cache, it was filled with several settings or by several versions: cache "
            "them again with force_cache_computation=true, or with another cache_path"
        )
    return ". ".join(advice)


def _shortened(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return f"{'scenes' if len(tokens) > 1 else 'scene'} {', '.join(tokens[:_SHOWN])}{more}"
