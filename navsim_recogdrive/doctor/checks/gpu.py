"""GPUs: seen by torch, and large enough for the agent and the stage."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, ok, size, warning
from navsim_recogdrive.doctor.memory import VLM_2B, VLM_8B, PlannerSize, VLMSize, needed

_CHECK, _MEMORY = "machine.gpu", "machine.gpu_memory"
_BATCH = {"train": 16, "rl": 8}  # scenes per GPU as published
_JOINT_BATCH = 2
_PLANNER_PARAMETERS = 34e6
_ASK_DRIVER_S = 10
_TIGHT = 0.9  # of a GPU's memory; the rest is fragmentation and what others take


def check(context: Context) -> Iterator[Finding]:
    """What torch sees; then the arithmetic for the smallest of the GPUs."""
    torch = context.value("import torch")
    if torch is None:
        return  # said by the check of imports and versions
    devices = torch["devices"]
    if not devices:
        yield _none(context, torch)
    else:
        names = ", ".join(f"{device['name']} ({size(device['total_bytes'])})" for device in devices)
        yield ok(_CHECK, f"{len(devices)} GPUs, torch {torch['version']} for CUDA {torch['cuda']}: {names}")
        if not all(device["bf16"] for device in devices):
            yield warning(
                _CHECK,
                "a GPU without bfloat16 units computes the VLM in bfloat16 slowly, by software",
                "use a GPU of the Ampere generation or newer",
            )
    for stage in _stages(context):
        yield _memory(context, stage, devices)


def _none(context: Context, torch: dict[str, Any]) -> Finding:
    hidden = context.request.environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return warning(_CHECK, f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
    driver = _driver()
    if driver and torch["cuda"] is None:
        return warning(
            _CHECK,
            f"the driver shows {driver}, but torch {torch['version']} is built for the CPU",
            "install torch for CUDA (the selector on pytorch.org), and torchvision from the same index or not at all",
        )
    if driver:
        return warning(
            _CHECK,
            f"the driver shows {driver}, but torch {torch['version']} (CUDA {torch['cuda']}) sees no GPU: the driver "
            "may be too old for it",
            "nvidia-smi shows the newest CUDA that the driver knows: update the driver, or install torch for that one",
        )
    return warning(
        _CHECK,
        "no GPU: everything runs on the CPU, where a 2B VLM takes many seconds per scene",
        "use a machine with a GPU; training from a cache and evaluation from one need no VLM",
    )


def _driver() -> str:
    """What NVIDIA's driver shows; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_DRIVER_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(line.strip() for line in done.stdout.splitlines() if line.strip())


def _stages(context: Context) -> list[str]:
    """Stages to do the arithmetic for."""
    if context.request.stage is not None:
        return [context.request.stage]
    return ["cache", "train", "evaluate"] if "planner" in context.agent else ["evaluate"]


def _memory(context: Context, stage: str, devices: list[dict[str, Any]]) -> Finding:
    parts = requirement(context, stage)
    total = sum(parts.values())
    what = f"{stage} with agent={context.request.agent}" + (" (joint)" if context.is_joint and stage == "train" else "")
    summed = " + ".join(f"{size(count)} {name}" for name, count in parts.items())
    sentence = f"{what} takes about {size(total)} by arithmetic, not measured ({summed})"
    if not devices:
        return ok(_MEMORY, sentence)
    smallest = min(devices, key=lambda device: device["total_bytes"])
    there, free = smallest["total_bytes"], smallest["free_bytes"]
    if total > there:
        return context.request.missing(
            _MEMORY, f"{sentence}; {smallest['name']} has {size(there)}", _advice(context, stage), stage
        )
    if total > _TIGHT * free:
        return warning(
            _MEMORY,
            f"{sentence}; of the {size(there)} of {smallest['name']} {size(free)} are free",
            f"end what else runs on it (nvidia-smi), or {_advice(context, stage)}",
        )
    return ok(_MEMORY, f"{sentence}; {smallest['name']} has {size(there)}")


def _advice(context: Context, stage: str) -> str:
    if stage in ("train", "rl"):
        advice = ["dataloader.params.batch_size=N smaller, trainer.params.accumulate_grad_batches=N larger"]
        if context.is_joint:
            training = context.vlm_settings.get("training", "frozen")
            if training != "frozen" and not context.vlm_settings.get("gradient_checkpointing"):
                advice.append("agent.vlm.gradient_checkpointing=true")
            if training == "full":
                advice.append("agent.vlm.training=lora")
            advice.append("training from cached hidden states (agent.cache_hidden_state=true)")
        return "; ".join(advice)
    return "a larger GPU, or agent=recogdrive_2b"


def requirement(context: Context, stage: str) -> dict[str, float]:
    """Bytes on one GPU by what takes them, with the agent's settings and the VLM's real sizes where they are known."""
    joint = context.is_joint
    runs_vlm = stage in ("cache", "evaluate", "submit") or (stage == "train" and joint)
    if stage == "cache" and joint:
        runs_vlm = False  # image tiles need no GPU
    if stage in ("evaluate", "submit") and context.agent.get("hidden_state_cache"):
        runs_vlm = False
    batch = (context.value("hydra") or {}).get("dataloader", {}).get("batch_size") or (
        _JOINT_BATCH if joint else _BATCH.get(stage, 1)
    )
    return needed(
        stage,
        _vlm(context) if runs_vlm else None,
        None if stage == "cache" else _planner(context),
        batch=int(batch) if stage in ("train", "rl") else 1,
        training=str(context.vlm_settings.get("training", "frozen")),
        checkpointing=bool(context.vlm_settings.get("gradient_checkpointing")),
        lora_rank=int((context.agent.get("lora") or {}).get("rank", 16)),
        rows=context.hidden_length,
    )


def _vlm(context: Context) -> VLMSize:
    width = 4 if context.vlm_settings.get("dtype") == "float32" else 2
    published = VLM_8B if context.hidden_size > VLM_2B.hidden_size else VLM_2B
    found = context.value("vlm") or {}
    return VLMSize(
        found.get("parameters") or published.parameters,
        found.get("layers") or published.layers,
        found.get("hidden_size") or published.hidden_size,
        found.get("intermediate_size") or published.intermediate_size,
        width,
    )


def _planner(context: Context) -> PlannerSize | None:
    if "planner" not in context.agent:
        return None
    settings = context.value("settings") or {}
    planner = settings.get("planner") or {}
    return PlannerSize(
        settings.get("planner_parameters") or _PLANNER_PARAMETERS,
        planner.get("num_layers", 16),
        planner.get("num_heads", 8) * planner.get("head_dim", 48),
        context.hidden_length,
        context.hidden_size,
    )
