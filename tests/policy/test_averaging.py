"""The average of the weights: exact, validated, saved beside the raw weights, resumed, and equal on all ranks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import averaged_training
import pytest
import pytorch_lightning as pl
import torch
from averaged_training import TRAINED, Model, Notes, batches, by_hand, trainer, weights
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import FSDPStrategy

from navsim_recogdrive.policy.averaging import NoWeightAverage, WeightAverage, decay_at
from navsim_recogdrive.policy.callbacks import ValidationDisplacement, training_callbacks
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.training_configuration import EMAConfig

Weights = dict[str, torch.Tensor]


def average_of(decay: float = 0.6, warmup: bool = False) -> WeightAverage:
    return WeightAverage(EMAConfig(decay, warmup))


def check_equal(found: Weights, expected: Weights, **tolerance: float) -> None:
    for name in TRAINED:
        torch.testing.assert_close(
            found[name].double(), expected[name].double(), **(tolerance or {"rtol": 0, "atol": 0})
        )


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_that_of_the_optimizer_steps(tmp_path: Path, precision: str, warmup: bool) -> None:
    """Seven batches, two per step: four steps per epoch, the last of one batch."""
    notes, model = Notes(), Model()
    run = trainer(average_of(0.6, warmup), notes, precision=precision, accumulate_grad_batches=2)
    run.fit(model, batches(), batches(2))
    assert len(notes.raw) == run.global_step == 8
    # The third and the seventh update with warm-up: 3 / 12 and 7 / 16, both below 0.6.
    decays = [(1 + update) / (10 + update) for update in range(1, 8)] if warmup else [0.6] * 7
    start, after_one, after_two = notes.validated
    check_equal(start, weights(Model()))
    close = {"rtol": 1e-5, "atol": 1e-6}
    check_equal(after_one, by_hand(notes.raw[:4], decays[:3]), **close)
    check_equal(after_two, by_hand(notes.raw, decays), **close)
    assert not torch.allclose(after_two["first.weight"], notes.raw[-1]["first.weight"], atol=1e-3)
    check_equal(weights(model), notes.raw[-1])  # trained on after validation, and left in the module

    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = read(tmp_path / "a.ckpt")
    check_equal(saved["state_dict"], after_two)
    check_equal(saved["current_model_state"], notes.raw[-1])
    assert saved["state_dict"].keys() == saved["current_model_state"].keys() == model.state_dict().keys()
    for name in ("tied.weight", "tied.bias"):
        assert torch.equal(saved["state_dict"][name], saved["state_dict"][name.replace("tied", "second")])
    for name in ("frozen.weight", "schedule"):  # once in memory, once in the file
        averaged, raw = (saved[part][name] for part in ("state_dict", "current_model_state"))
        assert averaged.data_ptr() == raw.data_ptr()
        assert torch.equal(averaged, model.state_dict()[name])


def test_only_what_is_trained_is_copied() -> None:
    callback, model = average_of(), Model()
    trainer(callback, max_steps=1).fit(model, batches(), batches(2))
    assert callback._average is not None
    shapes = [tuple(parameter.shape) for parameter in callback._average.parameters()]
    assert shapes == [(4, 3), (4,), (1, 4), (1,)], "the tied layer once, the frozen one and the buffer not at all"
    assert len(list(callback._average.buffers())) == 1, "its counter"


def test_decay_warms_up() -> None:
    assert [decay_at(update, 0.5, True) for update in (1, 4, 8, 100)] == [2 / 11, 5 / 14, 0.5, 0.5]
    assert decay_at(1, 0.5, False) == 0.5


class StopInValidation(pl.Callback):
    """Saves in the middle of the second epoch's validation, then fails."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self._path)
            raise RuntimeError("power failure")


def test_saved_and_interrupted_in_the_middle_of_validation(tmp_path: Path) -> None:
    notes, model = Notes(), Model()
    run = trainer(average_of(), notes, StopInValidation(tmp_path / "a.ckpt"))
    with pytest.raises(RuntimeError, match="power failure"):
        run.fit(model, batches(), batches(2))
    saved = read(tmp_path / "a.ckpt")
    check_equal(saved["state_dict"], notes.validated[-1])
    check_equal(saved["current_model_state"], notes.raw[-1])
    check_equal(weights(model), notes.raw[-1])


def test_best_and_last_hold_what_was_validated(tmp_path: Path) -> None:
    notes = Notes()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", save_top_k=1)
    each = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    run = trainer(average_of(), notes, best, each, max_epochs=3, num_sanity_val_steps=0, enable_checkpointing=True)
    run.fit(Model(), batches(), batches(2))
    for epoch in range(3):
        saved = read(tmp_path / f"epoch={epoch}.ckpt")
        check_equal(saved["state_dict"], notes.validated[epoch])
        check_equal(saved["current_model_state"], notes.raw[7 * (epoch + 1) - 1])
    model = Model()
    losses = []
    for validated in notes.validated:
        model.load_state_dict(validated, strict=False)
        with torch.no_grad():
            losses.append(sum(float(model.loss(batch)) for batch in batches(2)))
    check_equal(read(tmp_path / "best.ckpt")["state_dict"], notes.validated[losses.index(min(losses))])


@pytest.mark.parametrize("epochs", [1, 2])
def test_resumed_average_is_that_of_an_unbroken_run(tmp_path: Path, epochs: int) -> None:
    def run(max_epochs: int, notes: Notes) -> pl.Trainer:
        average = average_of(0.9, warmup=True)
        return trainer(average, notes, max_epochs=max_epochs, accumulate_grad_batches=2, num_sanity_val_steps=0)

    unbroken, resumed = Notes(), Notes()
    run(4, unbroken).fit(Model(), batches(), batches(2))
    first = run(epochs, Notes())
    first.fit(Model(), batches(), batches(2))
    first.save_checkpoint(tmp_path / "stopped.ckpt")
    model = Model(seed=5)  # its own weights must not matter
    run(4, resumed).fit(model, batches(), batches(2), ckpt_path=str(tmp_path / "stopped.ckpt"))
    assert len(resumed.raw) == 4 * (4 - epochs)
    for found, expected in zip(resumed.raw[::-1], unbroken.raw[::-1], strict=False):
        check_equal(found, expected)
    for found, expected in zip(resumed.validated[::-1], unbroken.validated[::-1], strict=False):
        check_equal(found, expected)


def test_resuming_with_other_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def stopped(name: str, *callbacks: pl.Callback) -> str:
        run = trainer(*callbacks, max_epochs=1)
        run.fit(Model(), batches(), batches(2))
        run.save_checkpoint(tmp_path / name)
        return str(tmp_path / name)

    averaged, plain = stopped("averaged.ckpt", average_of(0.6)), stopped("plain.ckpt", NoWeightAverage())
    with pytest.raises(InvalidSetting, match=r"averages its weights.*set agent\.ema\.decay=0\.6"):
        trainer(NoWeightAverage()).fit(Model(), batches(), ckpt_path=averaged)

    with caplog.at_level(logging.WARNING):
        trainer(average_of(0.7)).fit(Model(), batches(), ckpt_path=averaged)
    assert "averaged with agent.ema.decay=0.6 agent.ema.warmup=False, this one goes on with decay=0.7" in caplog.text

    caplog.clear()
    notes = Notes()
    with caplog.at_level(logging.WARNING):
        trainer(average_of(0.6), notes).fit(Model(), batches(), batches(2), ckpt_path=plain)
    assert "kept no average of its weights" in caplog.text
    check_equal(notes.validated[-1], by_hand(notes.raw, [0.6] * 6), rtol=1e-5, atol=1e-6)

    for callback in (average_of(), NoWeightAverage()):  # to validate a file is not to resume its run
        validated = Notes()
        trainer(callback, validated).validate(Model(), batches(2), ckpt_path=averaged, verbose=False)
        check_equal(validated.validated[-1], read(Path(averaged))["state_dict"])


def test_two_ranks_hold_the_same_average(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *(averaged_training.__file__, str(tmp_path)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [read(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert not torch.equal(*(rank["start"]["first.weight"] for rank in ranks)), "the ranks must start apart"
    steps = len(ranks[0]["raw"])
    assert steps == 4, "14 scenes, 7 of each rank in batches of 2, two batches per step, two epochs"
    for left, right in zip(ranks[0]["validated"], ranks[1]["validated"], strict=True):
        check_equal(left, right)
    expected = by_hand(ranks[0]["raw"], [0.6] * (steps - 1))
    for rank in ranks:
        check_equal(rank["validated"][-1], expected, rtol=1e-5, atol=1e-6)
    saved = read(tmp_path / "last.ckpt")
    check_equal(saved["state_dict"], ranks[0]["validated"][-1])
    check_equal(saved["current_model_state"], ranks[0]["raw"][-1])


def test_what_cannot_be_averaged_is_refused() -> None:
    callback = average_of()
    sharded = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(InvalidSetting, match=r"found FSDPStrategy: set trainer\.params\.strategy=ddp"):
        callback.setup(sharded, Model(), "fit")
    callback.setup(sharded, Model(), "validate")
    with pytest.raises(InvalidSetting, match=r"found first\.weight in torch\.bfloat16"):
        trainer(average_of(), precision="bf16-true").fit(Model(), batches())


def test_switched_off_by_default() -> None:
    off = training_callbacks(ValidationDisplacement(), ema=PolicyConfig().ema)
    assert not any(isinstance(callback, WeightAverage) for callback in off)
    on = training_callbacks(ValidationDisplacement(), ema=EMAConfig(0.999))
    assert isinstance(on[0], WeightAverage)
    assert [type(callback) for callback in off[1:]] == [type(callback) for callback in on[1:]]
    with pytest.raises(ValueError, match="needs ema.decay"):
        WeightAverage(EMAConfig())


def test_off_changes_no_checkpoint(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [NoWeightAverage()]):
        run = trainer(*callbacks)
        run.fit(Model(), batches(), batches(2))
        run.save_checkpoint(tmp_path / "a.ckpt")
        found.append(read(tmp_path / "a.ckpt"))
    assert found[0].keys() == found[1].keys()
    assert found[0]["callbacks"] == found[1]["callbacks"] == {}
    check_equal(found[0]["state_dict"], found[1]["state_dict"])


@pytest.mark.parametrize("decay", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), True, "0.9"])
def test_decay_out_of_range(decay: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"ema\.decay must be a number between 0 and 1"):
        PolicyConfig.from_mapping({"ema": {"decay": decay}})


def test_settings() -> None:
    assert PolicyConfig.from_mapping({"ema": {"decay": 0.999}}).ema == EMAConfig(0.999, warmup=True)
    with pytest.raises(InvalidSetting, match=r"agent\.ema\.warmup=false cannot act"):
        PolicyConfig.from_mapping({"ema": {"warmup": False}})
    with pytest.raises(InvalidSetting, match=r"ema\.warmup must be true or false"):
        PolicyConfig.from_mapping({"ema": {"decay": 0.9, "warmup": "yes"}})
    with pytest.raises(InvalidSetting, match=r"checkpoint_weights must be one of \('averaged', 'raw'\)"):
        PolicyConfig.from_mapping({"checkpoint_weights": "ema"})
    raw = PolicyConfig.from_mapping({"checkpoint_weights": "raw"})
    with pytest.raises(InvalidSetting, match=r"checkpoint_weights=raw cannot act without agent\.checkpoint_path"):
        raw.check_checkpoint(None)
    raw.check_checkpoint("last.ckpt")
