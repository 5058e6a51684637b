"""Step ``import NAME``: does a package import, and what does torch see of the GPUs."""

from __future__ import annotations

import importlib
from typing import Any


def run(parameters: dict[str, Any], results: dict[str, Any], name: str) -> dict[str, Any]:
    """Import a package.

    Returns:
        ``file`` of the package, its ``version``, and for torch ``cuda`` (version it was built for, or ``None``) and
        ``devices``.
    """
    module = importlib.import_module(name)
    found: dict[str, Any] = {
        "file": getattr(module, "__file__", None),
        "version": str(getattr(module, "__version__", "")),
    }
    if name == "torch":
        found["cuda"] = module.version.cuda or getattr(module.version, "hip", None)
        found["devices"] = _devices(module)
    if name == "torchvision":
        importlib.import_module("torchvision.ops")  # where a build for another torch fails
    return found


def _devices(torch: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "total_bytes": properties.total_memory,
                "free_bytes": torch.cuda.mem_get_info(index)[0],
                "bf16": properties.major >= 8,
            }
        )
    return devices
