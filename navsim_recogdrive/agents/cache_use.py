"""The feature cache of a run: opened to be filled, checked before it is trained from, and what it says of the VLM."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from navsim_recogdrive.agents.failed_scenes import FailedScenes, failed_reason
from navsim_recogdrive.agents.host import EmptySplit, HostRun, running_training
from navsim_recogdrive.agents.observations import camera_config
from navsim_recogdrive.agents.scene_images import CACHED, scenes_left_out
from navsim_recogdrive.cache.hidden_state import UNKNOWN_ORIGIN
from navsim_recogdrive.cache.identity import CacheIdentity, CacheIdentityError, check_same, claim, read_identity
from navsim_recogdrive.cache.peek import cached_scene_folders, peek_hidden_state
from navsim_recogdrive.cache.runs import forget_dead_runs
from navsim_recogdrive.cache.scan import (
    FOREIGN,
    LEFT_OUT,
    Finding,
    Layout,
    count_origins,
    loose_files,
    remove,
    scan_cache,
)
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.observation import HORIZON_POSES
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT, IMAGE_TILES_LAYOUT

logger = logging.getLogger(__name__)

_LISTED = 10
_PEEKED = 100
_REPAIR = "python -m navsim_recogdrive.cache repair {root}"

_OPENING = threading.Lock()
_OPENED: set[tuple[object, ...]] = set()


class ReadOnlyCache(PermissionError):
    """Features must be computed but their cache folder cannot be written."""


class EvaluationStopped(BaseException):
    """No scene can be planned: its hidden state must come from a cache and cannot, or a GPU's memory is too small.

    Not an ``Exception``: the runners catch those scene by scene and go on, and v1.1 would leave the scene out of the
    mean. Not a ``SystemExit``: a Ray worker dies of it without its message.
    """


class DamagedCache(DamagedFeature):
    """A cache with entries that training would fail on, or learn something wrong from."""


def layout_of(host: HostRun, config: PolicyConfig) -> Layout:
    """The files of a scene in the cache of a policy; of some splits, only what evaluation needs.

    Where the scene filter gives scenes fewer future frames than the horizon, or admits synthetic scenes, which have
    none, there is no expert's trajectory to cache.
    """
    layout = HIDDEN_STATE_LAYOUT if config.cache_hidden_state else IMAGE_TILES_LAYOUT
    chosen = host.scene_filter
    if chosen is None or not _only_fills(host):
        return layout
    short = chosen.num_future_frames < HORIZON_POSES or getattr(chosen, "include_synthetic_scenes", False)
    return layout.for_evaluation() if short else layout


def failed_scenes(host: HostRun, config: PolicyConfig) -> FailedScenes:
    """What the builders of an agent share to go on after a scene that fails: caught where a cache is filled alone.

    Where the same process trains on what it caches, it would read what stands in a failed scene's place.
    """
    return FailedScenes(Path(str(host.cache_path)) if _only_fills(host) else None, layout_of(host, config).files)


def open_for_writing(host: HostRun, config: PolicyConfig, backbone: SharedBackbone, failed: FailedScenes) -> None:
    """Get the cache ready that a runner is about to fill, once per process, before NAVSIM looks at it.

    It becomes, or must be, a cache of the configured VLM. With ``force_cache_computation=false`` what a killed run left
    damaged is removed, so that this run computes it. Only the logs of this run are looked at: another process may be
    filling the others. Scenes whose images cannot be read are left out; where another run in progress leaves a scene
    out, what keeps NAVSIM from it is left alone.

    Raises:
        ReadOnlyCache: if it cannot be written.
        CacheIdentityError: if it is a cache of another VLM, prompt or mode.
        DamagedCache: if there are files in its root, which NAVSIM would take for folders of logs.
        UnreadableImages: if images cannot be read, and ``force_cache_computation=true`` or none can be.
    """
    if host.cache_path is None or host.use_cache_without_dataset:
        return
    root, layout = Path(host.cache_path), layout_of(host, config)
    require_writable(root)
    logs = None if host.filter_log_names is None else tuple(host.filter_log_names)
    # Without a VLM nothing can be computed, and a complete cache needs nothing.
    identity = None
    if config.cache_hidden_state and config.vlm.path is not None:
        identity = backbone.identity(config.cache_mode)
    with _OPENING:
        opened = (root, layout, logs, identity)
        if opened not in _OPENED:
            _refuse_loose_files(root)
            if identity is not None:
                _claim(root, identity)
            if host.force_cache_computation is False and root.is_dir():
                _repair(root, layout, logs, identity)
            _OPENED.add(opened)
        sensors = camera_config(config.vlm.cameras)
        state = partial(_state, root, layout)
        failed.leave_out(lambda: scenes_left_out(host, sensors, state, host.force_cache_computation is not False))


def check_for_training(host: HostRun, config: PolicyConfig, backbone: SharedBackbone) -> None:
    """Refuse to train from a cache that is damaged or of another VLM; a quick scan of the logs that are used.

    The VLM is compared where its folder is there; training from a cache does not need it.

    Raises:
        CacheIdentityError: if the cache is of another VLM or prompt.
        DamagedCache: if entries are damaged, listing them.
        EmptySplit: if no scene has all that training needs.
    """
    if host.cache_path is None or not host.use_cache_without_dataset:
        return
    root, layout = Path(host.cache_path), layout_of(host, config)
    identity = read_identity(root) if config.cache_hidden_state else None
    if identity is not None and _has_local_vlm(config):
        advice = (
            "Set agent.vlm (path, prompt_profile, hidden_length, max_tiles), agent.cam_type and, for a VLM that was "
            "trained with its planner, agent.checkpoint_path as they were in caching; or use another cache_path"
        )
        check_same(root, identity, backbone.identity(config.cache_mode), CacheIdentity.DECIDING, advice)
    if rank_zero_only.rank != 0:
        return
    logs = {*(host.train_logs or ()), *(host.val_logs or ())} or None
    report = scan_cache(root, layout, None if logs is None else sorted(logs), identity=identity, workers=_workers())
    if config.cache_hidden_state and identity is None:
        accepted = None
        if _has_local_vlm(config):
            # Training may compute in another dtype than caching did.
            accepted = set(_by_origin(backbone.identity(config.cache_mode)))
        _check_origins(root, report.origins, accepted)
        logger.warning("The cache %s does not say what made it: only the marks in its files were compared", root)
    # Training passes over scenes for evaluation, whatever is wrong with them.
    evaluation_only = set(report.evaluation_only)
    blocking = [finding for finding in report.misleading if finding.path.parent not in evaluation_only]
    if blocking:
        filling = any(finding.kind == LEFT_OUT for finding in blocking)
        raise DamagedCache(
            f"{len(blocking)} files of the cache {root} must not be trained on ({report.scenes} scenes are whole):\n"
            f"{_listing(blocking)}\n{'Wait for the run that is filling the cache. ' if filling else ''}"
            f"Run {_REPAIR.format(root=root)} (with --foreign for those of another VLM), then the caching again with "
            "force_cache_computation=false"
        )
    if report.incomplete:
        logger.warning(
            "%d scenes of the cache %s lack files and are left out (the first is %s); the caching again with "
            "force_cache_computation=false completes them",
            len(report.incomplete),
            root,
            report.incomplete[0],
        )
    if report.evaluation_only:
        logger.warning(
            "%d scenes of the cache %s were cached for evaluation, without the expert's trajectory, and are left out "
            "(the first is %s)",
            len(report.evaluation_only),
            root,
            report.evaluation_only[0],
        )
    if not report.scenes:
        raise EmptySplit(
            f"no scene of the cache {root} can be trained on: {len(report.incomplete)} lack files, "
            f"{len(report.evaluation_only)} were cached for evaluation, without the expert's trajectory. Run "
            "run_dataset_caching.py with the training split and force_cache_computation=false"
        )


def vlm_of_run(host: HostRun, config: PolicyConfig, backbone: SharedBackbone) -> CacheIdentity | None:
    """What the hidden states of a training run come from, for its checkpoints; ``None`` if that is not known."""
    root = None
    if config.cache_hidden_state and host.use_cache_without_dataset and host.cache_path is not None:
        root = Path(host.cache_path)
        if (found := read_identity(root)) is not None:
            return found
    if not _has_local_vlm(config):
        return None
    configured = backbone.identity(config.cache_mode)
    if root is None:
        return configured
    # The marks were compared before: there is one, and it tells the dtype that caching computed in.
    return _by_origin(configured).get(_first_origin(root, host), configured)


def require_writable(cache_path: Path) -> None:
    """Stop before an expensive computation whose result could not be stored.

    Raises:
        ReadOnlyCache: if ``cache_path``, or its nearest existing parent, is not writable.
    """
    folder = cache_path
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise ReadOnlyCache(
            f"the cache folder {cache_path} is read-only, and this run would write to it. To train from it as it is, "
            "add use_cache_without_dataset=true force_cache_computation=false; to fill it, choose another cache_path."
        )


def _only_fills(host: HostRun) -> bool:
    """Whether this process fills a cache and does nothing else."""
    return host.cache_path is not None and not host.use_cache_without_dataset and not running_training()


def _state(root: Path, layout: Layout, log: str, token: str) -> str | None:
    """:data:`CACHED`, ``None`` if a scene is not cached, or why a run that goes on beside this one leaves it out."""
    paths = [root / log / token / f"{name}.gz" for name in layout.files]
    if not all(path.is_file() for path in paths):
        return None
    reason = next((reason for reason in map(failed_reason, paths) if reason is not None), None)
    return CACHED if reason is None else f"left out by another run in progress: {reason}"


def _claim(root: Path, identity: CacheIdentity) -> None:
    # In this order: another process may claim an empty cache and write its first scene in between.
    file_name = f"{HIDDEN_STATE_LAYOUT.files[0]}.gz"
    anonymous = root.is_dir() and next(cached_scene_folders(root, None, file_name), None)
    if anonymous and read_identity(root) is None:
        _check_origins(root, count_origins(root, file_name, _workers()), {identity.origin})
        logger.warning("The cache %s does not say what made it: only the marks in its files were compared", root)
        return
    claim(root, identity)


def _check_origins(root: Path, counts: Counter[bytes], accepted: set[bytes] | None) -> None:
    """Compare the marks in the files of a cache without identity with each other and with ``accepted``.

    Raises:
        CacheIdentityError: if there are several, or one that is not among ``accepted`` (``None``: any is).
    """
    listing = ", ".join(f"{count} with the mark {origin.hex()}" for origin, count in counts.most_common())
    if len(counts) > 1:
        raise CacheIdentityError(
            f"the cache {root} holds hidden states of several VLMs, prompts or settings, as if caches had been merged: "
            f"{listing}. Use a cache of one of them, or cache the split again with another cache_path"
        )
    if accepted is not None and not counts.keys() <= accepted:
        expected = " or ".join(sorted(origin.hex() for origin in accepted))
        raise CacheIdentityError(
            f"the cache {root} holds hidden states of another VLM, prompt or other settings than configured: "
            f"{listing}, expected {expected}. Set agent.vlm (path, prompt_profile, hidden_length, max_tiles, dtype) "
            "and agent.cam_type as they were in caching, or use another cache_path"
        )


def _by_origin(identity: CacheIdentity) -> dict[bytes, CacheIdentity]:
    """What ``identity`` would be in each dtype, by the marks that its hidden states would have."""
    return {one.origin: one for one in (replace(identity, dtype=dtype) for dtype in ("bfloat16", "float32"))}


def _first_origin(root: Path, host: HostRun) -> bytes:
    """The first mark in the files of a training run; none if the first have none."""
    logs = sorted({*(host.train_logs or ()), *(host.val_logs or ())}) or None
    file_name = f"{HIDDEN_STATE_LAYOUT.files[0]}.gz"
    for folder in islice(cached_scene_folders(root, logs, file_name), _PEEKED):
        with suppress(DamagedFeature):
            if (origin := peek_hidden_state(folder / file_name).origin) != UNKNOWN_ORIGIN:
                return origin
    return UNKNOWN_ORIGIN


def _refuse_loose_files(root: Path) -> None:
    loose = loose_files(root) if root.is_dir() else []
    if loose:
        raise DamagedCache(
            f"the cache {root} must hold folders of logs only, found the file{'s' if len(loose) > 1 else ''} "
            f"{', '.join(path.name for path in loose[:_LISTED])}: NAVSIM fails on them. Move them elsewhere; "
            f"{_REPAIR.format(root=root)} removes unfinished ones"
        )


def _repair(root: Path, layout: Layout, logs: Iterable[str] | None, identity: CacheIdentity | None) -> None:
    report = scan_cache(root, layout, logs, identity=identity, workers=_workers())
    # NAVSIM computes scenes that lack files anyway, so only those that it would take for complete matter.
    foreign = [finding for finding in report.misleading if finding.kind == FOREIGN]
    if foreign:
        raise CacheIdentityError(
            f"{len(foreign)} hidden states of the cache {root} are of another VLM or prompt than the cache, as if two "
            f"caches had been merged:\n{_listing(foreign)}\nRemove them with {_REPAIR.format(root=root)} --foreign, or "
            "use another cache_path"
        )
    removed = remove(report.misleading)
    forget_dead_runs(root)
    if removed:
        logger.warning(
            "Removed %d damaged or failed files from the cache %s; their scenes are computed again:\n%s",
            len(removed),
            root,
            _listing(removed),
        )


def _has_local_vlm(config: PolicyConfig) -> bool:
    return config.vlm.path is not None and Path(config.vlm.path).is_dir()


def _workers() -> int:
    return min(16, 4 * (os.cpu_count() or 1))


def _listing(findings: list[Finding]) -> str:
    lines = [f"  {finding.scene}: {finding.reason}" for finding in findings[:_LISTED]]
    return "\n".join([*lines, *([f"  and {len(findings) - _LISTED} more"] if len(findings) > _LISTED else [])])
