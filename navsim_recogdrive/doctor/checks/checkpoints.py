"""Planner weights: there, readable, of the agent's planner, trained with the configured VLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok

_CHECK = "checkpoint.planner"
_LARGE_HEADS = 32  # of the planner dit_large


def check(context: Context) -> Iterator[Finding]:
    """Compare keys and shapes with the agent's settings."""
    request = context.request
    if "planner" not in context.agent:
        return  # the text planner has none
    if not context.checkpoints and request.wants("rl", "evaluate", "submit"):
        yield request.missing(
            _CHECK,
            "no planner weights are named",
            "--checkpoint FILE, or export CHECKPOINT=FILE (rl: the planner to start from)",
            "rl",
            "evaluate",
            "submit",
        )
    for path in context.checkpoints:
        if not Path(path).is_file():
            yield error(_CHECK, f"no file {path}", "name the .ckpt or .safetensors itself")
            continue
        result = context.step(f"checkpoint {path}")
        if result is None or result.error:
            reason = result.error if result else "it was not tried"
            yield error(_CHECK, f"planner weights cannot be used: {reason}", "name another file, or copy it again")
            continue
        found = result.value
        planner = found["planner"]
        if found["differing"]:
            expected = context.value("settings")["planner"]
            differing = "; ".join(
                f"its {name} is {planner[name]}, the agent's {expected[name]}" for name in found["differing"]
            )
            yield error(_CHECK, f"{path} is not of agent={request.agent}: {differing}", _hint(planner, expected))
        elif found["other_vlm"]:
            yield error(_CHECK, found["other_vlm"], "--vlm FOLDER of the VLM that it was trained with")
        else:
            remembered = found["remembered"] or "it does not say (published checkpoints do not)"
            yield ok(
                _CHECK,
                f"{path} fits agent={request.agent}: {planner['method']}, {planner['num_layers']} layers of "
                f"{planner['num_heads']} heads, hidden size {planner['hidden_state_size']}; trained with: {remembered}",
            )


def _hint(found: dict[str, object], expected: dict[str, object]) -> str:
    """Settings that make the agent's planner that of the checkpoint."""
    hints = []
    sizes = {1536: "--agent recogdrive_2b", 3584: "--agent recogdrive_8b"}
    if found["hidden_state_size"] != expected["hidden_state_size"]:
        size = found["hidden_state_size"]
        hints.append(sizes.get(int(str(size)), f"agent.planner.hidden_state_size={size}"))
    names = [name for name in found if name != "hidden_state_size" and found[name] != expected[name]]
    if "num_heads" in names and found["num_heads"] == _LARGE_HEADS:
        hints.append("agent/planner=dit_large")
        names = [name for name in names if name not in ("num_heads", "output_size")]
    return " ".join([*hints, *(f"agent.planner.{name}={found[name]}" for name in names)])
