"""Hydra: does ``agent=NAME`` reach this package's config, and do its settings hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import OWN_FOLDER, Context
from navsim_recogdrive.doctor.findings import Finding, error, listing, ok, warning

_PROVIDER = "navsim-recogdrive"


def check(context: Context) -> Iterator[Finding]:
    """Compose the agent as a runner does, and look for configs of the same name."""
    agent = context.request.agent
    result = context.step("hydra")
    if result is None or result.error:
        yield _unresolved(context, result.error if result else "it was not tried")
        return
    sources = result.value["sources"]
    first = sources[0] if sources else {"provider": "nobody", "path": ""}
    own = (OWN_FOLDER / "configs" / "agent" / f"{agent}.yaml").is_file()
    if own and first["provider"] != _PROVIDER:
        yield error(
            "hydra.registration",
            f"agent={agent} is taken from {first['path']} ({first['provider']}), not from this package: a config of "
            "the same name comes before it",
            f"rename or remove agent/{agent}.yaml there",
        )
    else:
        yield ok("hydra.registration", f"agent={agent} resolves, from {first['path']} ({first['provider']})")
    yield from _same_names(context)
    if context.request.stage == "rl" and context.is_joint:
        yield error(
            "hydra.settings",
            "reinforcement learning trains on hidden states, agent.cache_hidden_state=false is for imitation learning",
            "leave agent.cache_hidden_state out",
        )
    settings = context.step("settings")
    if settings is not None and settings.error:
        missing = settings.error.startswith(("ModuleNotFoundError", "ImportError"))
        fix = (
            "pip install -e '.[navsim]' in the checkout of navsim-recogdrive" if missing else "change the setting named"
        )
        fault = "could not be checked" if missing else "do not hold"
        yield error("hydra.settings", f"the agent's settings {fault}: {settings.error}", fix)


def _unresolved(context: Context, reason: str) -> Finding:
    agent = context.request.agent
    known = sorted(path.stem for path in (OWN_FOLDER / "configs" / "agent").glob("*.yaml"))
    if agent in known and "Could not find" in reason:
        fix = "pip install -e . in the checkout of navsim-recogdrive, with the Python that runs NAVSIM"
    elif agent not in known and "Could not" in reason:
        fix = f"take one of {', '.join(known)}"
    else:
        fix = "correct the override that the message names, or install hydra-core and omegaconf again"
    return error("hydra.registration", f"agent={agent} does not resolve: {reason.splitlines()[0]}", fix)


def _same_names(context: Context) -> Iterator[Finding]:
    """Configs of NAVSIM's own folders: a runner's folder comes before this package's, ``common`` after it."""
    if context.navsim is None:
        return
    ours = [path.relative_to(OWN_FOLDER / "configs") for path in (OWN_FOLDER / "configs" / "agent").rglob("*.yaml")]
    folders = sorted(path for path in context.navsim.config.glob("*") if path.is_dir())
    before = [folder / name for folder in folders for name in ours if (folder / name).is_file()]
    hidden = [path for path in before if "common" in path.relative_to(context.navsim.config).parts[:1]]
    shadowing = [path for path in before if path not in hidden]
    if shadowing:
        yield error(
            "hydra.registration",
            f"NAVSIM's own folder holds configs that come before those of this package: {listing(shadowing)}",
            f"rename or remove {_names(shadowing)}",
        )
    if hidden:
        yield warning(
            "hydra.registration",
            f"these configs are never used, those of this package come before them: {listing(hidden)}",
            f"rename {_names(hidden)}",
        )


def _names(paths: list[Path]) -> str:
    return " ".join(map(str, paths))
