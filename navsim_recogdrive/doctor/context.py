"""What the checks share: the request, what is installed, where NAVSIM is, and the steps of the separate process."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from navsim_recogdrive.doctor.isolated.runner import StepResult, run_steps
from navsim_recogdrive.doctor.request import CHALLENGE_SPLIT, TEST_SPLIT, TRAINING_SPLIT, Request

PACKAGE = "navsim-recogdrive"
OWN_FOLDER = Path(__file__).parents[1]

_IMPORTS = ("numpy", "pandas", "pyarrow", "cv2", "shapely", "blosc2", "hydra")
_LARGE_IMPORTS = ("torch", "torchvision", "transformers", "peft", "flash_attn", "pytorch_lightning")
"""Compiled packages, each of which fails in its own way, in the order in which a runner meets them."""

_DEVKIT_VARIABLES = ("NAVSIM_DEVKIT_ROOT", "NUPLAN_DEVKIT_ROOT")


class Navsim:
    """An importable ``navsim``, as its files tell; nothing of it is imported.

    Args:
        folder: of the package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_the_benchmark(self) -> bool:
        """Whether it is NAVSIM, and not PyPI's unrelated project of the same name."""
        return (self.folder / "agents" / "abstract_agent.py").is_file()

    @property
    def major(self) -> int:
        """2 for v2.x, else 1, by the runners that it has."""
        return 2 if (self.folder / "planning" / "script" / "run_pdm_score_one_stage.py").is_file() else 1

    @property
    def config(self) -> Path:
        """Folder of its Hydra configurations."""
        return self.folder / "planning" / "script" / "config"


class Context:
    """One run of the doctor.

    Args:
        request: what was asked for.
        python_path: where packages are looked for; ``None``: where this process finds them.
        run: runs steps, see :func:`~navsim_recogdrive.doctor.isolated.runner.run_steps`.
    """

    def __init__(
        self,
        request: Request,
        python_path: Sequence[str] | None = None,
        run: Callable[..., dict[str, StepResult]] = run_steps,
    ) -> None:
        self.request = request
        self._python_path = sys.path if python_path is None else python_path
        self._run = run

    @cached_property
    def search_path(self) -> list[str]:
        """``sys.path`` as the scripts make it: the devkits of the environment variables first."""
        devkits = [self.request.environment.get(name, "") for name in _DEVKIT_VARIABLES]
        return [*(path for path in devkits if path), *(path or str(Path.cwd()) for path in self._python_path)]

    def distribution(self, name: str) -> importlib.metadata.Distribution | None:
        """The installed distribution of a name; ``None`` if there is none."""
        return next(iter(importlib.metadata.distributions(name=name, path=self.search_path)), None)

    def version(self, name: str) -> str | None:
        """Version of an installed distribution; ``None`` if it is absent, ``""`` if its metadata is broken."""
        found = self.distribution(name)
        if found is None:
            return None
        try:
            return str(found.version or "")
        except Exception:  # no METADATA file, no Version in it, not text
            return ""

    def module_folder(self, name: str) -> Path | None:
        """Folder of an importable top-level package, which is not imported; ``None`` if there is none."""
        spec = importlib.machinery.PathFinder.find_spec(name, self.search_path)
        if spec is None and self._python_path is sys.path:
            try:
                spec = importlib.util.find_spec(name)  # editable installs behind import hooks
            except (ImportError, ValueError):
                return None
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or [])
        return Path(folders[0]) if folders else Path(spec.origin or name)

    @cached_property
    def navsim(self) -> Navsim | None:
        """The importable ``navsim``."""
        folder = self.module_folder("navsim")
        return None if folder is None else Navsim(folder)

    @property
    def split(self) -> str | None:
        """NAVSIM's split: the request's, or what the scripts of its stage take; ``None`` where there is neither."""
        stage = self.request.stage
        if self.request.split is not None or stage is None:
            return self.request.split
        if stage == "submit" and self.navsim is not None and self.navsim.is_the_benchmark and self.navsim.major >= 2:
            return CHALLENGE_SPLIT
        return TEST_SPLIT if stage in ("evaluate", "submit") else TRAINING_SPLIT

    @cached_property
    def imports(self) -> list[str]:
        """Packages whose import is tried: those that are there."""
        return [name for name in (*_IMPORTS, *_LARGE_IMPORTS) if self.module_folder(name) is not None]

    @cached_property
    def checkpoints(self) -> list[str]:
        """Planner weights named in the request."""
        request = self.request
        settings = ("agent.checkpoint_path", "agent.reference_policy_checkpoint")
        named = [request.checkpoint, *(request.override(name) for name in settings)]
        return list(dict.fromkeys(str(path) for path in named if path is not None))

    @cached_property
    def _published(self) -> dict[str, Any]:
        size = 3584 if "8b" in self.request.agent else 1536
        return {"planner": {"hidden_state_size": size}, "vlm": {"path": self.request.vlm}}

    @cached_property
    def _steps(self) -> dict[str, StepResult]:
        request, navsim = self.request, self.navsim
        usable = navsim is not None and navsim.is_the_benchmark
        overrides = list(request.overrides)
        if request.vlm is not None:
            quoted = request.vlm.replace("\\", "\\\\").replace("'", "\\'")
            overrides.append(f"agent.vlm.path='{quoted}'")
        steps = [f"import {name}" for name in self.imports]
        steps += ["hydra", "settings"]
        if usable:
            steps.append("navsim")
        if request.vlm is not None:
            steps.append("vlm")
        steps += [f"checkpoint {path}" for path in self.checkpoints if Path(path).is_file()]
        if request.cache is not None and request.cache.is_dir():
            steps.append("cache")
        if usable and request.metric_cache is not None:
            steps.append("metric_cache")
        parameters = {
            "agent": request.agent,
            "overrides": overrides,
            "published": self._published,
            "training_config": str(navsim.config / "training") if navsim is not None and usable else None,
            "cache": None if request.cache is None else str(request.cache),
            "metric_cache": None if request.metric_cache is None else str(request.metric_cache),
        }
        # Nothing is downloaded for a diagnosis, and no warnings of libraries are wanted.
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        environment = {**request.environment, **quiet}
        # This package first, so that both processes are of one version.
        path = [str(OWN_FOLDER.parent), *self.search_path]
        return self._run(steps, parameters, environment, path, request.time_limit_s)

    def step(self, name: str) -> StepResult | None:
        """Result of a step in the separate process, which the first call starts; ``None`` if there is none."""
        return self._steps.get(name)

    def value(self, name: str) -> Any:
        """What a step returned; ``None`` where it failed or there is none."""
        found = self._steps.get(name)
        return None if found is None else found.value

    @cached_property
    def agent(self) -> dict[str, Any]:
        """The agent's settings as Hydra composed them, or where it failed, the published ones."""
        composed = self.value("hydra")
        settings: dict[str, Any] = composed["agent"] if composed else self._published
        return settings

    @property
    def vlm_settings(self) -> dict[str, Any]:
        """The group ``agent.vlm``."""
        settings: dict[str, Any] = self.agent.get("vlm") or {}
        return settings

    @property
    def is_joint(self) -> bool:
        """Whether the VLM sees the images in every training step, in place of a cache of hidden states."""
        return self.agent.get("cache_hidden_state") is False

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that the agent works with."""
        planner = self.agent.get("planner")
        return int(planner["hidden_state_size"] if planner else self.agent.get("hidden_size") or 1536)

    @property
    def hidden_length(self) -> int:
        """Rows of a hidden state."""
        return int((self.value("vlm") or {}).get("hidden_length") or self.vlm_settings.get("hidden_length") or 2800)
