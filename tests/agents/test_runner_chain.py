"""The road through NAVSIM's own, unmodified runners: cache, train, cache metrics, score.

Submissions: ``test_cache_evaluation.py``, and ``test_script_chain.py``, where they are checked.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runners import EVERY_FRAME, ON_CPU, Runners
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

# Root may write to read-only folders; without these two rights it may not.
NO_OVERRIDE = "-dac_override,-dac_read_search"


def test_chain(runners: Runners, tiny_world: Path) -> None:
    index = json.loads((tiny_world / "world.json").read_text())
    splits = [f"{part}_logs=[{','.join(index[f'{part}_logs'])}]" for part in ("train", "val")]
    cache = runners.experiments / "training_cache"

    runners.run(
        "run_dataset_caching.py",
        *TINY_AGENT,
        "train_test_split=trainval",
        EVERY_FRAME,
        "worker=sequential",
        "experiment_name=caching",
        f"cache_path={cache}",
    )
    cached = {path.parent.name for path in cache.glob("*/*/recogdrive_hidden_state.gz")}
    assert len(cached) > 20

    runners.run(
        "run_training.py",
        *TINY_AGENT,
        *ON_CPU,
        *splits,
        "train_test_split=trainval",
        "experiment_name=training",
        f"cache_path={cache}",
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        "trainer.params.max_epochs=2",
        "trainer.params.gradient_clip_val=1.0",
        "+trainer.params.enable_progress_bar=false",
        "agent.optimizer.warmup_epochs=1",
        "agent.ema.decay=0.999",
    )
    (last,) = (runners.experiments / "training").rglob("last.ckpt")
    assert list(last.parent.glob("best-*.ckpt"))
    assert last.stat().st_size < 50e6, "the VLM must not be in the checkpoint"

    saved = torch.load(last, weights_only=True)
    averaged, raw = saved["state_dict"], saved["current_model_state"]
    assert averaged.keys() == raw.keys()
    assert all(key.startswith("agent.action_head.") for key in averaged)
    assert any(not torch.equal(averaged[key], raw[key]) for key in averaged)

    runners.cache_metrics()
    table = runners.score([*TINY_AGENT, f"agent.checkpoint_path={last}"], "score")
    scenes = table[~table["token"].astype(str).str.startswith("average")]
    assert len(scenes) > 5
    assert scenes["valid"].astype(bool).all()
    assert scenes["score"].between(0, 1).all()


def test_errors_come_early_through_the_runners(runners: Runners) -> None:
    nowhere = ["train_test_split=trainval", "experiment_name=bad", "train_logs=[nowhere]", "val_logs=[nowhere]"]
    output = runners.run("run_training.py", "agent=recogdrive_2b", *ON_CPU, *nowhere, expect_failure=True)
    assert "hidden size 32, the planner expects 1536" in output
    output = runners.run("run_training.py", *TINY_AGENT, *ON_CPU, *nowhere, expect_failure=True)
    assert "train_logs selects no scene" in output

    cache = runners.experiments / "read_only"
    cache.mkdir(mode=0o555, parents=True)
    prefix: tuple[str, ...] = (sys.executable,)
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("running as root without setpriv: no folder is read-only")
        prefix = ("setpriv", f"--bounding-set={NO_OVERRIDE}", f"--inh-caps={NO_OVERRIDE}", sys.executable)
    output = runners.run(
        "run_dataset_caching.py",
        *TINY_AGENT,
        "train_test_split=trainval",
        "worker=sequential",
        "experiment_name=bad",
        f"cache_path={cache}",
        expect_failure=True,
        prefix=prefix,
    )
    assert f"the cache folder {cache} is read-only" in output
