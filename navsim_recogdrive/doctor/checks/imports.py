"""Do the compiled packages import; what their usual failures mean."""

from __future__ import annotations

import re
from collections.abc import Iterator

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import ERROR, WARNING, Finding, ok

_CHECK = "packages.imports"

_DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "hydra": "hydra-core",
    "flash_attn": "flash-attn",
    "pytorch_lightning": "pytorch-lightning",
}

_KNOWN = (
    (
        "cv2",
        r"libGL|libgthread|libSM|libXext|libEGL",
        "it needs libraries of a desktop",
        "pip uninstall -y opencv-python; pip install opencv-python-headless",
    ),
    (
        "pyarrow",
        r"numpy|_ARRAY_API|multiarray",
        "it is built for another numpy",
        "pip install 'numpy>=2', or 'pyarrow==17.*' beside numpy 1.26",
    ),
    (
        "torchvision",
        "",
        "transformers imports it where it is installed",
        "pip uninstall torchvision (this package does not need it), or install the one that belongs to torch",
    ),
    (
        "flash_attn",
        "",
        "it is built for another torch or CUDA",
        "pip uninstall flash-attn (agent.vlm.attention=sdpa does without), or build it for this torch",
    ),
    (
        "torch",
        r"libcu|libnv|nvJitLink|cudnn",
        "it finds CUDA libraries of another version",
        "unset LD_LIBRARY_PATH, or install torch again",
    ),
    (
        "",
        r"numpy\.dtype size changed|_ARRAY_API|compiled using NumPy 1|numpy\.core\.multiarray",
        "it is built for another numpy",
        "pip install --upgrade --force-reinstall {distribution}",
    ),
    (
        "",
        r"^TimeoutError",
        "a slow file system or an import that hangs",
        "try python -X importtime -c 'import {module}', or raise --time-limit",
    ),
)
"""Module (empty: any), pattern of its error, what it means, and the fix."""


def check(context: Context) -> Iterator[Finding]:
    """Import them, each in the separate process."""
    names = context.imports
    failed = False
    for name in names:
        result = context.step(f"import {name}")
        if result is None or not result.error:
            continue
        failed = True
        meaning, fix = _explain(name, result.error)
        found = f"{name} is installed and does not import: {result.error}" + (f" ({meaning})" if meaning else "")
        yield Finding(_CHECK, ERROR if _is_needed(context, name) else WARNING, found, fix)
    if _asks_for_flash(context) and "flash_attn" not in names:
        yield Finding(
            _CHECK,
            ERROR,
            "agent.vlm.attention=flash_attention_2 needs flash-attn, which is not installed",
            "pip install flash-attn --no-build-isolation, or agent.vlm.attention=sdpa",
        )
    elif not failed:
        yield ok(_CHECK, f"these import: {', '.join(names)}")


def _explain(name: str, error: str) -> tuple[str, str]:
    distribution = _DISTRIBUTIONS.get(name, name)
    for module, pattern, meaning, fix in _KNOWN:
        if module in ("", name) and re.search(pattern, error):
            return meaning, fix.format(distribution=distribution, module=name)
    return "", f"pip install --force-reinstall {distribution}"


def _asks_for_flash(context: Context) -> bool:
    return context.vlm_settings.get("attention") == "flash_attention_2"


def _is_needed(context: Context, name: str) -> bool:
    if name == "flash_attn":
        return _asks_for_flash(context)
    if name == "peft":
        return context.request.stage == "pretraining" or context.vlm_settings.get("training") == "lora"
    return not (name in ("pyarrow", "pytorch_lightning") and context.request.stage == "pretraining")
