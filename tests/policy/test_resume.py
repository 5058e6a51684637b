"""Runs that are stopped and resumed: as if they had never been stopped, or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from interrupted_training import Model, run

from navsim_recogdrive.planner.checkpoints import PlannerCheckpointError
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.last_checkpoint import LastCheckpoint
from navsim_recogdrive.policy.preemption import EXIT_STATUS, NOTE_VARIABLE
from navsim_recogdrive.policy.resume import ResumeError, find_checkpoint, read_resumed
from navsim_recogdrive.policy.run_settings import RunSettings, run_settings

STEPS_PER_EPOCH = 4  # 14 scenes in batches of 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[int], pl.Trainer]:
    model, log, trainer = run(tmp_path_factory.mktemp("whole"))
    return model, log.steps, trainer


def last(folder: Path) -> Path:
    (path,) = folder.rglob("last.ckpt")
    return path


# Killed in the first step after: a checkpoint inside of an epoch, one before its last batch, one at its end.
@pytest.mark.parametrize("stop_after", [2, 3, 4, 6])
def test_a_killed_run_goes_on_as_if_never_stopped(
    tmp_path: Path, whole: tuple[Model, list[int], pl.Trainer], stop_after: int
) -> None:
    expected, logged, trainer = whole
    first, first_log, stopped = run(tmp_path, stop_after=stop_after)
    assert stopped.interrupted
    second, second_log, resumed = run(tmp_path, resume="auto")
    # The batch at which it was killed, and one before it where that was an epoch's last, are trained again.
    state = torch.load(last(tmp_path), weights_only=True)
    assert state["navsim_recogdrive"]["resume"]["epoch"] == 3
    done = len(expected.steps) - len(second.steps)
    assert done == stop_after
    assert first.steps[:done] + second.steps == expected.steps, "the same scenes and losses, to the last bit"
    assert first_log.steps[:done] + second_log.steps == logged
    for name, value in expected.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert resumed.global_step == trainer.global_step == 12
    assert first.validations + second.validations == expected.validations
    for ours, theirs in zip(resumed.checkpoint_callbacks[1:2], trainer.checkpoint_callbacks[:1], strict=True):
        assert Path(ours.best_model_path).name == Path(theirs.best_model_path).name
        assert ours.best_model_score == theirs.best_model_score
        assert len(list(Path(ours.best_model_path).parent.glob("best-*"))) == 1


def test_a_run_with_workers_accumulation_and_inner_validation_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "accumulate_grad_batches": 2,
        "val_check_interval": 0.5,
        "batch_size": 2,
        "workers": 1,
        "epochs": 2,
    }
    expected, _, _ = run(tmp_path / "whole", **options)
    first, _, _ = run(tmp_path / "run", stop_after=2, **options)
    second, _, _ = run(tmp_path / "run", resume="auto", **options)
    done = len(expected.steps) - len(second.steps)
    assert 0 < done <= len(first.steps)
    assert done % 2 == 0, "never while gradients accumulate"
    assert first.steps[:done] + second.steps == expected.steps
    assert torch.equal(second.layer.weight, expected.layer.weight)


class Signal(pl.Callback):
    """Sends this process a signal in the middle of a step, or in a validation."""

    def __init__(self, number: signal.Signals, step: int | None = None, validation: int | None = None) -> None:
        self._number, self._step, self._validation = number, step, validation

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), self._number)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self._validation:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_its_step(
    tmp_path: Path,
    whole: tuple[Model, list[int], pl.Trainer],
    number: signal.Signals,
    caplog: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    note = tmp_path / "note"
    monkeypatch.setenv(NOTE_VARIABLE, str(note))
    before = signal.getsignal(number)
    ended: list[BaseException] = []

    class Noting(pl.Callback):
        def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
            ended.append(exception)

    first, _, _ = run(tmp_path, every_steps=None, callbacks=[Signal(number, step=5), Noting()])
    assert isinstance(ended[0], SystemExit)
    assert ended[0].code == EXIT_STATUS == 75
    assert note.read_text() == f"{last(tmp_path)}\n", "for the script that started torchrun"
    assert signal.getsignal(number) == before
    assert number.name in caplog.text
    assert "agent.resume=auto" in caplog.text
    second, _, _ = run(tmp_path, resume="auto")
    assert first.steps + second.steps == whole[0].steps, "no step is lost, none is made twice"


def test_a_signal_before_the_first_step_is_heard(
    tmp_path: Path, whole: tuple[Model, list[int], pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "note"
    monkeypatch.setenv(NOTE_VARIABLE, str(note))
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]

    ended: list[BaseException] = []
    early = pl.Callback()
    monkeypatch.setattr(early, "on_train_start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(early, "on_exception", lambda trainer, module, exception: ended.append(exception))
    first, _, _ = run(tmp_path, callbacks=[early])
    assert isinstance(ended[0], SystemExit)
    assert ended[0].code == EXIT_STATUS
    assert first.steps == []
    assert note.read_text()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    second, _, _ = run(tmp_path, resume="auto")
    assert second.steps == whole[0].steps


def test_a_signal_in_a_validation_cuts_it_short(
    tmp_path: Path, whole: tuple[Model, list[int], pl.Trainer], caplog: Any
) -> None:
    first, log, _ = run(tmp_path, every_steps=None, callbacks=[Signal(signal.SIGTERM, validation=1)])
    assert len(first.steps) == 2 * STEPS_PER_EPOCH
    assert first.validations == 2 + 1
    assert "validation of epoch 1 was cut short" in caplog.text
    second, second_log, _ = run(tmp_path, resume="auto")
    assert first.steps + second.steps == whole[0].steps
    assert log.steps + second_log.steps == whole[1]
    assert second.validations == 2


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, caplog: Any) -> None:
    run(tmp_path, epochs=1)
    before = last(tmp_path).stat().st_mtime_ns
    model, _, _ = run(tmp_path, epochs=1, resume="auto")
    assert not model.steps
    assert last(tmp_path).stat().st_mtime_ns == before
    assert "nothing is left to train" in caplog.text


def test_more_epochs_are_trained_on_the_new_curve_and_said(tmp_path: Path, caplog: Any) -> None:
    run(tmp_path, epochs=2)
    expected = Model(4).configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0](2) * 0.05
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model, _, _ = run(tmp_path, epochs=4, resume="auto", callbacks=[Rates()])
    assert len(model.steps) == 2 * STEPS_PER_EPOCH
    assert rates[0] == pytest.approx(expected)
    assert "trainer.params.max_epochs: 2 in the checkpoint, 4 in this run" in caplog.text


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(ResumeError, match="size: 3 in the checkpoint, 4 in this run") as error:
        run(tmp_path, resume="auto", settings={"size": 4, "more": 1})
    assert "more: not set in the checkpoint, 1 in this run" in str(error.value)
    assert "agent.checkpoint_path=FILE" in str(error.value)


def test_an_epoch_is_not_continued_with_other_data(tmp_path: Path, caplog: Any) -> None:
    run(tmp_path, stop_after=2)
    with pytest.raises(ResumeError, match="scenes: 14 in the checkpoint, 15 in this run") as error:
        run(tmp_path, resume="auto", scenes=15, batch_size=2)
    assert "batch size: 4 in the checkpoint, 2 in this run" in str(error.value)


def test_the_next_epoch_may_have_other_data_which_is_said(tmp_path: Path, caplog: Any) -> None:
    run(tmp_path, epochs=1)
    model, _, _ = run(tmp_path, resume="auto", epochs=2, batch_size=7)
    assert len(model.steps) == 2
    assert "goes on with another batch size: 4 in the checkpoint, 7 in this run" in caplog.text


def test_a_checkpoint_without_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ResumeError, match="holds no state to resume from"):
        read_resumed(path, RunSettings())
    torch.save({"state_dict": {}, "more": Model}, path)
    with pytest.raises(PlannerCheckpointError, match="weights_only=True"):
        read_resumed(path, RunSettings())


def test_a_lightning_that_restores_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.trainer.connectors import checkpoint_connector

    run(tmp_path, stop_after=2)
    content = last(tmp_path).read_bytes()
    monkeypatch.setattr(
        checkpoint_connector._CheckpointConnector, "_parse_ckpt_path", lambda *_, **__: None, raising=True
    )
    with pytest.raises(ResumeError, match=r"Lightning 2\.\d+.* did not restore .*epoch 0, after 2 of its 4 batches"):
        run(tmp_path, resume="auto")
    assert last(tmp_path).read_bytes() == content, "the run that could not go on is left as it was"


def test_a_lightning_that_begins_at_another_batch_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, stop_after=2)

    class AtBatch(pl.Callback):
        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"].update(completed=1)

    with pytest.raises(ResumeError, match="the first batch is number 1 of epoch 0"):
        run(tmp_path, resume="auto", callbacks=[AtBatch()])


class TestWhichCheckpoint:
    @staticmethod
    def write(path: Path, age: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
        return path

    def test_auto_takes_the_latest_of_the_experiment(self, tmp_path: Path) -> None:
        experiment = tmp_path / "il"
        here = experiment / "2026.01.03.00.00.00"
        assert find_checkpoint("auto", here) is None
        self.write(experiment / "2026.01.01.00.00.00/log/version_0/checkpoints/last.ckpt", 50)
        newest = self.write(experiment / "2026.01.02.00.00.00/log/version_1/checkpoints/last.ckpt", 10)
        self.write(experiment / "2026.01.02.00.00.00/log/version_0/checkpoints/last.ckpt", 20)
        self.write(experiment / "copy/last.ckpt", 1)
        self.write(tmp_path / "other/2026.01.02.00.00.00/last.ckpt", 0)
        assert find_checkpoint("auto", here) == newest

    def test_auto_stays_in_a_folder_that_the_user_named(self, tmp_path: Path) -> None:
        self.write(tmp_path / "2026.01.02.00.00.00/last.ckpt", 0)
        assert find_checkpoint("auto", tmp_path / "mine") is None
        mine = self.write(tmp_path / "mine/checkpoints/last.ckpt", 9)
        assert find_checkpoint("auto", tmp_path / "mine") == mine

    def test_a_file_or_a_folder(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "run/checkpoints/last.ckpt", 0)
        assert find_checkpoint(str(tmp_path / "run"), None) == path
        assert find_checkpoint(str(path), None) == path

    @pytest.mark.parametrize(
        ("resume", "message"),
        [("nowhere", "no such file or folder"), ("", "no last.ckpt in or below"), ("auto", "output_dir")],
    )
    def test_errors(self, tmp_path: Path, resume: str, message: str) -> None:
        with pytest.raises(ResumeError, match=message):
            find_checkpoint(resume if resume == "auto" else str(tmp_path / resume), None)


def test_settings_are_named_as_a_user_sets_them(tmp_path: Path) -> None:
    config = PolicyConfig.from_mapping({"optimizer": {"epochs": 7}})
    settings = run_settings(config)
    assert settings.fixed["objective"] == "imitation"
    assert settings.fixed["agent.planner.num_layers"] == 16
    assert settings.fixed["agent.optimizer.betas"] == [0.9, 0.95]
    assert "agent.optimizer.epochs" not in settings.fixed
    assert settings.changeable == {"agent.optimizer.epochs": 7}
    reinforcement = run_settings(config, {"rl": {"group_size": 8}})
    assert reinforcement.fixed["agent.rl.group_size"] == 8
    assert "agent.imitation.draws_per_scene" not in reinforcement.fixed
    torch.save(settings.fixed, tmp_path / "settings")
    assert torch.load(tmp_path / "settings", weights_only=True) == settings.fixed


def test_time_is_that_of_rank_0(tmp_path: Path) -> None:
    from navsim_recogdrive.policy.data_order import OrderedScenes
    from navsim_recogdrive.policy.training_configuration import CheckpointConfig

    callback = LastCheckpoint(CheckpointConfig(every_minutes=1e-9), OrderedScenes(), RunSettings())

    class Rank:
        global_step = 0
        is_global_zero = True

    rank = Rank()
    assert callback._is_due(rank)
    rank.is_global_zero = False
    assert not callback._is_due(rank)
