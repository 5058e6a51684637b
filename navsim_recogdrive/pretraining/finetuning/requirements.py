"""What a run needs beside its data, checked before anything that takes time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings, InvalidSetting

SETTINGS_FILE = "finetuning.json"
"""In a run's folder: what it was begun with."""


def check_requirements(settings: FinetuneSettings) -> None:
    """Make sure that packages and files that settings ask for are there.

    Raises:
        InvalidSetting: naming the setting and the fix.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise InvalidSetting(
            "fine-tuning needs accelerate: pip install -e '.[pretraining]' in the checkout of navsim-recogdrive"
        )
    _check_attention(settings.attention)
    _check_report(settings.report_to)
    if settings.deepspeed is not None:
        _check_deepspeed(settings.deepspeed)


def check_output(output: Path, checkpoint: Path) -> None:
    """Make sure that a run cannot write over the model that it starts from, or over another one.

    Args:
        output: folder that the run writes.
        checkpoint: folder of the base model.

    Raises:
        InvalidSetting: naming both.
    """
    ours, base = output.resolve(), checkpoint.resolve()
    if ours == base:
        raise InvalidSetting(
            f"output={output} is the folder of the base model, which would be written over: name another"
        )
    if base.is_relative_to(ours) and base.relative_to(ours).parts[0].startswith("checkpoint-"):
        raise InvalidSetting(
            f"the base model {checkpoint} is a checkpoint of output={output}, which the run would replace or delete: "
            "name another output, or continue that run with --resume"
        )
    if (ours / "config.json").is_file() and not (ours / SETTINGS_FILE).is_file():
        raise InvalidSetting(
            f"output={output} holds a model that no fine-tuning run wrote ({SETTINGS_FILE} is missing): name another"
        )


def _check_attention(attention: str) -> None:
    from navsim_recogdrive.vlm.attention import kernel_name

    try:
        kernel_name(attention)
    except ValueError as error:
        raise InvalidSetting(str(error)) from None


def _check_report(name: str) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    if name in ("none", "all"):
        return
    if name not in INTEGRATION_TO_CALLBACK:
        raise InvalidSetting(f"report_to must be none, all or one of {sorted(INTEGRATION_TO_CALLBACK)}, found {name!r}")
    if name not in get_available_reporting_integrations():
        raise InvalidSetting(
            f"report_to={name} needs a package that is not installed: install it, or set report_to=none"
        )


def _check_deepspeed(path: Path) -> None:
    if not path.is_file():
        raise InvalidSetting(f"deepspeed={path} is not a file: give a DeepSpeed configuration (JSON)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidSetting(f"deepspeed={path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InvalidSetting(f"deepspeed={path} must hold a JSON object, found a {type(content).__name__}")
    if importlib.util.find_spec("deepspeed") is None:
        raise InvalidSetting("deepspeed is set, but DeepSpeed is not installed: pip install deepspeed, or leave it out")
