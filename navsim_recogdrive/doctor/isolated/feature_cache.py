"""Step ``cache``: a quick look at a cache of hidden states or image tiles; a few logs of it, to be done in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from navsim_recogdrive.cache.identity import CacheIdentity, read_identity
from navsim_recogdrive.cache.peek import cached_logs, cached_scene_folders
from navsim_recogdrive.cache.scan import LEFT_OUT, Layout, loose_files, scan_cache
from navsim_recogdrive.doctor.isolated.settings import agent_settings, vlm_config
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT, IMAGE_TILES_LAYOUT

_LOGS = 8  # looked through; a log of navtrain has about 90 scenes
_LISTED = 3


def run(parameters: dict[str, Any], results: dict[str, Any], argument: str) -> dict[str, Any]:
    """Scan logs spread over a cache.

    Returns:
        ``kind`` (``hidden states``, ``image tiles`` or ``None``), ``logs`` and ``looked_at``, ``scenes`` (whole ones),
        ``incomplete``, ``evaluation_only``, ``loose`` (paths), ``findings`` (the first reasons) and their number
        ``broken``, ``states`` (mode, rows, columns, count), ``identity`` (one line or ``None``) and ``other_vlm`` (the
        fields in which the configured VLM differs; only where the step ``vlm`` found one).

    Raises:
        CacheIdentityError: if the cache's identity cannot be read.
    """
    root = Path(parameters["cache"])
    logs = [folder.name for folder in cached_logs(root, None)]
    kind, layout = _kind(root, logs)
    identity = read_identity(root)
    chosen = logs[:: max(1, len(logs) // _LOGS)][:_LOGS]
    found = scan_cache(root, layout or HIDDEN_STATE_LAYOUT, chosen, identity=identity)
    broken = [one for one in found.findings if one.kind != LEFT_OUT]
    return {
        "kind": kind,
        "logs": len(logs),
        "looked_at": len(chosen),
        "scenes": found.scenes,
        "incomplete": len(found.incomplete),
        "evaluation_only": len(found.evaluation_only),
        "loose": [str(path) for path in loose_files(root)],
        "broken": len(broken),
        "findings": [one.reason for one in broken[:_LISTED]],
        "states": [[*state, count] for state, count in sorted(found.states.items())],
        "identity": None if identity is None else identity.describe(),
        "other_vlm": _other_vlm(identity, parameters, results),
    }


def _kind(root: Path, logs: list[str]) -> tuple[str | None, Layout | None]:
    for kind, layout in (("hidden states", HIDDEN_STATE_LAYOUT), ("image tiles", IMAGE_TILES_LAYOUT)):
        if next(cached_scene_folders(root, logs, f"{layout.files[0]}.gz"), None) is not None:
            return kind, layout
    return None, None


def _other_vlm(identity: CacheIdentity | None, parameters: dict[str, Any], results: dict[str, Any]) -> list[str]:
    if identity is None or "vlm" not in results:
        return []
    configured = SharedBackbone(vlm_config(agent_settings(parameters, results))).identity()
    return identity.differences(configured, CacheIdentity.DECIDING)
