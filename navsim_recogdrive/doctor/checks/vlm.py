"""The VLM: given, whole, of a supported kind, and of the agent's size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok, size, warning

_CHECK = "vlm.folder"
_BYTES = {"bfloat16": 2, "float32": 4}
_AGENTS = {1536: "recogdrive_2b", 3584: "recogdrive_8b"}


def check(context: Context) -> Iterator[Finding]:
    """Read headers, configuration and tokenizer; no weights."""
    request = context.request
    needed = _needed_by(context)
    if request.vlm is None:
        if request.wants(*needed):
            yield request.missing(
                _CHECK,
                "no VLM is configured: VLM_PATH is not set",
                "export VLM_PATH=FOLDER (config.json, *.safetensors, tokenizer), or --vlm FOLDER",
                *needed,
            )
        return
    result = context.step("vlm")
    if result is None or result.error:
        reason = result.error if result else "it was not tried"
        if not Path(request.vlm).expanduser().is_dir() and "local cache" in reason:
            yield warning(
                _CHECK,
                f"{request.vlm} is no folder here; as a hub repository it is not in the local cache and would be "
                "downloaded at its first use",
                f"hf download {request.vlm}",
            )
        else:
            yield error(
                _CHECK, f"the VLM cannot be used: {reason}", "do what the message says, or set another VLM_PATH"
            )
        return
    found, expected = result.value, context.hidden_size
    if found["hidden_size"] != expected:
        agent = _AGENTS.get(found["hidden_size"])
        yield error(
            _CHECK,
            f"the VLM in {request.vlm} has hidden size {found['hidden_size']}, agent={request.agent} works with "
            f"{expected}",
            f"--agent {agent} (agent={agent})" if agent else f"agent.planner.hidden_state_size={found['hidden_size']}",
        )
        return
    weights = found["parameters"] * _BYTES.get(context.vlm_settings.get("dtype", "bfloat16"), 2)
    yield ok(
        _CHECK,
        f"{found['vlm_type']} in {request.vlm}: {found['parameters'] / 1e9:.2f} B parameters ({size(weights)}), hidden "
        f"states of {found['hidden_length']} x {found['hidden_size']}; all its files are whole",
    )


def _needed_by(context: Context) -> tuple[str, ...]:
    """Stages that run the VLM."""
    stages = ["cache", "pretraining"]
    if context.is_joint:
        stages += ["train"]
    only_cached = context.agent.get("hidden_state_cache") and context.agent.get("hidden_state_cache_miss") != "vlm"
    if not only_cached:
        stages += ["evaluate", "submit"]
    return tuple(stages)
