"""Answers that passed, as samples in InternVL's format."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from navsim_recogdrive.pretraining.labelling.labeller import Outcome


def sample(outcome: Outcome) -> dict[str, Any]:
    """One sample: ``id``, ``image`` (below the data root), ``width``, ``height``, ``conversations``."""
    scene = outcome.scene
    return {
        "id": f"{scene.token}-{outcome.family}",
        "image": scene.image,
        "width": scene.width,
        "height": scene.height,
        "conversations": [
            {"from": "human", "value": f"<image>\n{outcome.question}"},
            {"from": "gpt", "value": outcome.answer},
        ],
    }


def write_samples(path: Path, outcomes: Iterable[Outcome]) -> int:
    """Write the samples of the outcomes that passed, in their order; the file appears whole or not at all.

    Returns:
        How many there are.

    Raises:
        OSError: if it cannot be written; an older file is then still there.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for outcome in outcomes:
                if outcome.verdict == "passed":
                    file.write(json.dumps(sample(outcome), ensure_ascii=False) + "\n")
                    count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count
