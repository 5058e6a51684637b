"""The example notebook, run from top to bottom with the tiny models and the scene that it makes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_recogdrive.policy.observation_input import ImplausibleInput

NOTEBOOK = Path(__file__).parents[2] / "examples" / "plan_one_scene.ipynb"


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 6
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), "outputs are not kept in git"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])

    monkeypatch.chdir(tmp_path)
    for name in ("VLM_PATH", "CHECKPOINT"):
        monkeypatch.delenv(name, raising=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for cell in cells:
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}: {cell['id']}", "exec"), names)

    assert names["plan"].poses.shape == (8, 3)
    assert names["samples"].shape == (16, 8, 3)
    np.testing.assert_allclose(names["samples"][0], names["plan"].poses, atol=1e-4)
    assert names["view"].camera is not None
    (odd,) = [str(one.message) for one in caught if issubclass(one.category, ImplausibleInput)]
    assert "is this km/h?" in odd
