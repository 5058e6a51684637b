"""A cache of hidden states or image tiles: of the agent's kind and size, of the configured VLM, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, listing, ok, warning

_CHECK = "cache.features"
_TOOL = "python -m navsim_recogdrive.cache"


def check(context: Context) -> Iterator[Finding]:
    """Quick look at a few of its logs."""
    request = context.request
    root = request.cache
    if root is None:
        if request.wants("train", "rl"):
            yield request.missing(
                _CHECK,
                "no cache to train from is named",
                "export CACHE_PATH=FOLDER, or --cache FOLDER; made by scripts/cache_dataset/"
                "run_caching_recogdrive_hidden_state.sh",
                *(() if context.is_joint else ("train", "rl")),
            )
        return
    if not root.exists():
        if request.stage == "cache":
            yield ok(_CHECK, f"{root} does not exist yet")
        else:
            yield request.missing(
                _CHECK, f"no cache at {root}", "make it with run_dataset_caching.py, or name another", "train", "rl"
            )
        return
    if not root.is_dir():
        yield error(_CHECK, f"{root} is not a folder", "name the cache_path of run_dataset_caching.py")
        return
    result = context.step("cache")
    if result is None or result.error:
        reason = result.error if result else "it was not tried"
        yield error(_CHECK, f"the cache {root} cannot be used: {reason}", f"{_TOOL} inspect {root}")
        return
    yield from _judge(context, str(root), result.value)


def _judge(context: Context, root: str, found: dict[str, Any]) -> Iterator[Finding]:
    if found["kind"] is None:
        yield context.request.missing(
            _CHECK, f"{root} holds no cached scene", "fill it with run_dataset_caching.py", "train", "rl"
        )
        return
    kind = "image tiles" if context.is_joint else "hidden states"
    if found["kind"] != kind:
        setting = "true" if context.is_joint else "false"
        yield error(
            _CHECK,
            f"{root} holds {found['kind']}, the agent reads {kind}",
            f"agent.cache_hidden_state={setting}, or another cache",
        )
        return
    problems = [*_wrong(context, root, found), *_damaged(root, found)]
    yield from problems
    if not problems:
        states = "; ".join(f"{count} of {rows} x {columns} in {mode}" for mode, rows, columns, count in found["states"])
        yield ok(
            _CHECK,
            f"{root}: {found['scenes']} whole scenes in {found['looked_at']} of {found['logs']} logs"
            + (f" ({states})" if states else "")
            + f"; made by: {found['identity'] or 'it does not say'}",
        )


def _wrong(context: Context, root: str, found: dict[str, Any]) -> Iterator[Finding]:
    """Of another VLM than the one the agent wants."""
    sizes = sorted({columns for _, _, columns, _ in found["states"]})
    if sizes and sizes != [context.hidden_size]:
        yield error(
            _CHECK,
            f"{root} holds hidden states of size {listing(sizes)}, agent={context.request.agent} works with "
            f"{context.hidden_size}",
            "--agent recogdrive_2b (1536) or recogdrive_8b (3584), or another cache",
        )
    elif found["other_vlm"]:
        names = ", ".join(found["other_vlm"])
        yield error(
            _CHECK,
            f"{root} was made with another VLM or prompt than the configured one: {names}; it says {found['identity']}",
            "set VLM_PATH and agent.vlm as they were, or another cache",
        )


def _damaged(root: str, found: dict[str, Any]) -> Iterator[Finding]:
    if found["broken"]:
        yield error(
            _CHECK,
            f"{found['broken']} files in the {found['looked_at']} logs looked at must not be used: "
            f"{'; '.join(found['findings'])}",
            f"{_TOOL} repair {root}, then cache again with force_cache_computation=false",
        )
    if found["loose"]:
        yield error(
            _CHECK,
            f"NAVSIM's Dataset fails on files that lie in the cache's root: {listing(found['loose'])}",
            "move them elsewhere",
        )
    if found["incomplete"]:
        yield warning(
            _CHECK,
            f"{found['incomplete']} scenes in {found['looked_at']} of {found['logs']} logs lack files and are not used",
            "run the caching again with force_cache_computation=false",
        )
