"""The scenes that a submission for a split must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

CHALLENGE = "private_test_hard_two_stage"
"""The split of NAVSIM v2.x whose scenes have no annotations and files of their own form."""

_FILTER = "train_test_split.scene_filter."
_LISTS = ("tokens", "reactive_synthetic_initial_tokens")
"""Of a scene filter: where they are given, they say which scenes a submission must hold."""


class NoSuchTokens(ValueError):
    """Tokens to check against that cannot be had."""


@dataclass(frozen=True)
class ExpectedTokens:
    """Scenes that a submission must hold, and no others.

    Attributes:
        first: original scenes.
        second: second-stage scenes, which only submissions of NAVSIM v2.x have; ``None``: not told apart, ``first`` are
            those of both stages.
        source: what they are the scenes of.
        listed: whether a list names them; else they are those that the data on this machine have.
    """

    first: frozenset[str]
    second: frozenset[str] | None
    source: str
    listed: bool = True


def read_tokens(path: Path) -> ExpectedTokens:
    """Tokens of a text file, one per line; those of both stages together.

    Raises:
        NoSuchTokens: if it cannot be read or holds none.
    """
    try:
        tokens = frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchTokens(f"{path} cannot be read: {error}") from error
    if not tokens:
        raise NoSuchTokens(f"{path} holds no token: expected one per line")
    return ExpectedTokens(tokens, None, str(path))


def tokens_of_split(split: str, overrides: Sequence[str], *, of_the_data: bool = False) -> ExpectedTokens:
    """Tokens of a split, as a leaderboard expects them.

    Where the scene filter lists its tokens, in the split or by an override, those count, whether their data are on this
    machine or not: a submission made with a part of the data must not pass. Otherwise, or if an override narrows the
    filter beyond its lists (logs, number of scenes, frames), NAVSIM's own loader reads the logs and, of two stages, the
    folder ``synthetic_scenes_path``; such tokens are not :attr:`ExpectedTokens.listed`.

    Args:
        split: NAVSIM's name of it.
        overrides: Hydra's, as for ``run_create_submission_pickle.py``; those of the agent are passed over.
        of_the_data: leave out what the data on this machine do not have, whatever the lists say.

    Raises:
        NoSuchTokens: if there is no such split, or no logs or second-stage scenes to read it from.
        NavsimNotUsable: if NAVSIM cannot be imported.
    """
    # Here, not above: against a list of tokens a submission is checked where NAVSIM is not installed.
    from navsim_recogdrive.agents.compat import load_challenge, load_split, runner_config_folder

    names = [override.partition("=")[0].lstrip("+~") for override in overrides]
    others = [one for one, name in zip(overrides, names, strict=True) if name.split(".")[0].split("/")[0] != "agent"]
    try:
        with initialize_config_dir(config_dir=str(runner_config_folder("pdm_scoring")), version_base=None):
            config = compose("default_run_create_submission_pickle", overrides=[f"train_test_split={split}", *others])
        scene_filter = instantiate(config.train_test_split.scene_filter)
        narrowed = any(name.startswith(_FILTER) and name.removeprefix(_FILTER) not in _LISTS for name in names)
        second = getattr(scene_filter, "reactive_synthetic_initial_tokens", None) or ()
        # NAVSIM plans the second stage of the first stage's scenes alone, but for its challenge, which links none.
        first_alone = _FILTER + _LISTS[0] in names and _FILTER + _LISTS[1] not in names
        narrowed |= bool(second) and split != CHALLENGE and first_alone
        if scene_filter.tokens is not None and not narrowed and not of_the_data:
            return ExpectedTokens(frozenset(scene_filter.tokens), frozenset(second), split)
        folder = Path(config.navsim_log_path)
        scenes = Path(config.synthetic_scenes_path) if second else None
    except (HydraException, OmegaConfBaseException) as error:
        raise NoSuchTokens(f"the scenes of {split} cannot be told: {error}") from error
    if not folder.is_dir():
        raise NoSuchTokens(f"no folder of logs {folder}: check OPENSCENE_DATA_ROOT and --split")
    if scenes is not None and not scenes.is_dir():
        raise NoSuchTokens(
            f"no folder of second-stage scenes {scenes}: give synthetic_scenes_path=FOLDER, as the runner was given it"
        )
    loader: Any
    if split == CHALLENGE:
        loader = load_challenge(folder, scene_filter, scenes)
    else:
        logs = [path.stem for path in folder.glob("*.pkl")]
        if scene_filter.log_names is not None:
            logs = sorted(set(logs) & set(scene_filter.log_names))
        loader = load_split(folder, scene_filter, logs, scenes)
    first = getattr(loader, "tokens_stage_one", None)
    return ExpectedTokens(
        frozenset(loader.tokens if first is None else first),
        frozenset(loader.reactive_tokens_stage_two or ()) if second else frozenset(),
        split,
        listed=False,
    )
