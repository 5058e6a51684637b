"""Whole runs through the command line and the script: overfitting, continuing, several processes, adapters."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_vlm import write_byte_vlm
from qa_data import SAMPLES, future_poses, observation, talk, trajectory_records, write_data

from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.preemption import EXIT_STATUS, NOTE_VARIABLE
from navsim_recogdrive.policy.text_policy import TextPolicy
from navsim_recogdrive.pretraining.evaluation import EvaluationSettings, evaluate
from navsim_recogdrive.pretraining.finetuning import trainer as trainer_module
from navsim_recogdrive.pretraining.finetuning.__main__ import main
from navsim_recogdrive.pretraining.finetuning.run import InvalidData, finetune
from navsim_recogdrive.pretraining.finetuning.saving import CannotSave
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings, InvalidSetting
from navsim_recogdrive.pretraining.finetuning.trainer import last_checkpoint
from navsim_recogdrive.vlm import VLMSettings, load_backbone
from navsim_recogdrive.vlm.prompts import PromptProfile

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "pretraining" / "internvl3_2b_dynamic_res_2nd_finetune_recogdrive_pretrain.sh"


@pytest.fixture(scope="module")
def byte_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_vlm(tmp_path_factory.mktemp("vlm") / "bytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 trajectory questions, a question about two images and one about none."""
    folder = tmp_path_factory.mktemp("data")
    records = trajectory_records(folder / "profile.json")
    records.append(talk("<image> or <image>?", "The first.", image=["images/0.png", "images/1.png"]))
    records.append(talk("Who drives?", "I do."))
    write_data(folder, records)
    return folder


def _settings(byte_vlm: Path, data: Path, output: Path, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "global_batch_size": 4,
        "device_batch_size": 2,
        "epochs": 2,
        "learning_rate": 1e-3,
        "max_tiles": 1,
        "drop_path": 0.3,
        "precision": "float32",
        "prompt_profile": str(data / "profile.json"),
        "workers": 0,
        "save_steps": 3,
        "keep_checkpoints": 9,
        "log_steps": 1,
        **changes,
    }
    return FinetuneSettings(str(byte_vlm), str(data / "mixture.json"), output, **values)


def _losses(output: Path) -> list[tuple[int, float]]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def whole_run(byte_vlm: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of five steps without a stop."""
    return finetune(_settings(byte_vlm, data, tmp_path_factory.mktemp("run") / "whole"), cpu=True)


def test_sixteen_scenes_are_learnt_by_heart_through_the_script(byte_vlm: Path, tmp_path: Path) -> None:
    mixture = write_data(tmp_path, trajectory_records(tmp_path / "profile.json"))
    arguments = (
        *("--precision", "float32", "--global-batch-size", "16", "--device-batch-size", "16", "--epochs", "140"),
        *("--learning-rate", "8e-3", "--max-tiles", "1", "--drop-path", "0", "--workers", "0", "--log-steps", "10"),
        *("--prompt-profile", str(tmp_path / "profile.json"), "--no-gradient-checkpointing"),
    )
    output = tmp_path / "run"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "MODEL": str(byte_vlm),
        "MIXTURE": str(mixture),
        "OUTPUT": str(output),
        "GPUS_PER_NODE": "0",
        "MASTER_PORT": "29571",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [loss for _, loss in _losses(output)]
    assert losses[0] > 5
    assert losses[-1] < 0.05

    config = VLMConfig(dtype="float32", max_tiles=1, hidden_length=640)
    policy = TextPolicy.from_pretrained(output, device="cpu", vlm_config=config)
    plans = policy.plan_batch([observation(index) for index in range(SAMPLES)])
    for index, plan in enumerate(plans):
        np.testing.assert_allclose(plan.poses, future_poses(index), atol=0.02, err_msg=str(index))
    assert policy.counts.exact == SAMPLES

    asked = EvaluationSettings(
        str(output), tmp_path / "qa.jsonl", tmp_path, tmp_path / "eval", max_tiles=1, dtype="float32", device="cpu"
    )
    summary = evaluate(asked)
    assert (summary["exact"], summary["parse_rate"]) == (SAMPLES, 1.0)
    assert summary["ade"] < 0.02

    backbone = load_backbone(output, dtype=torch.float32)  # what a planner reads
    assert torch.isfinite(backbone.content_rows(backbone.prepare(observation(0)))).all()


def test_a_stopped_run_continues_as_if_it_had_not_stopped(
    byte_vlm: Path, data: Path, whole_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole_run, output)
    for stopped in ("checkpoint-9", "checkpoint-10"):
        shutil.rmtree(output / stopped)
    (output / "model.safetensors").unlink()
    half_written = output / "checkpoint-7"  # the run was stopped while it wrote this
    shutil.copytree(output / "checkpoint-6", half_written)
    (half_written / "trainer_state.json").unlink()
    assert last_checkpoint(output) == output / "checkpoint-6"
    finetune(_settings(byte_vlm, data, output, resume=True), cpu=True)
    assert _losses(output) == _losses(whole_run)
    assert (output / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()


def test_a_signal_ends_a_run_with_a_checkpoint_that_continues(
    byte_vlm: Path, data: Path, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, before = tmp_path / "note", signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv(NOTE_VARIABLE, str(note))
    compute_loss = trainer_module.FinetuneTrainer.compute_loss

    def with_signal(self: Any, *arguments: Any, **settings: Any) -> Any:
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *arguments, **settings)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.FinetuneTrainer, "compute_loss", with_signal)
        with pytest.raises(SystemExit) as ended:
            finetune(_settings(byte_vlm, data, output), cpu=True)
    assert ended.value.code == EXIT_STATUS
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_checkpoint(output) == output / "checkpoint-5"
    assert note.read_text() == f"{output / 'checkpoint-5'}\n"
    assert not (output / "model.safetensors").exists()
    finetune(_settings(byte_vlm, data, output, resume=True), cpu=True)
    assert _losses(output) == _losses(whole_run)
    assert (output / "model.safetensors").read_bytes() == (whole_run / "model.safetensors").read_bytes()


def test_every_checkpoint_is_a_vlm(whole_run: Path) -> None:
    assert sorted(path.name for path in whole_run.glob("checkpoint-*")) == [
        *("checkpoint-10", "checkpoint-3", "checkpoint-6", "checkpoint-9")
    ]
    for folder in (whole_run, whole_run / "checkpoint-3"):
        backbone = load_backbone(folder)
        assert backbone.profile.answer_head == "[PT, "


def test_losses_fall_and_speed_is_logged(whole_run: Path) -> None:
    losses = [loss for _, loss in _losses(whole_run)]
    assert [step for step, _ in _losses(whole_run)] == list(range(1, 11))
    assert losses[-1] < losses[0] - 0.5
    history = json.loads((whole_run / "trainer_state.json").read_text())["log_history"]
    assert all(entry["tokens_per_s"] > 0 and "learning_rate" in entry for entry in history if "loss" in entry)
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    assert rates[0] == 0.0  # one of ten steps is warm-up
    assert max(rates) == rates[1] == 1e-3
    assert sorted(rates[1:], reverse=True) == rates[1:]


def test_several_processes_train_as_one(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    # Without stochastic depth, whose draws differ between processes; a step has the same samples either way.
    whole = finetune(_settings(byte_vlm, data, tmp_path / "one", drop_path=0.0, epochs=1), cpu=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"),
            *("--rdzv_endpoint=localhost:0", "-m", "navsim_recogdrive.pretraining.finetuning", "--cpu"),
            *("--model", str(byte_vlm), "--mixture", str(data / "mixture.json"), "--output", str(tmp_path / "two")),
            *("--global-batch-size", "4", "--device-batch-size", "1", "--epochs", "1", "--learning-rate", "1e-3"),
            *("--max-tiles", "1", "--drop-path", "0", "--precision", "float32", "--workers", "0", "--log-steps", "1"),
            *("--prompt-profile", str(data / "profile.json"), "--save-steps", "3"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = _losses(whole), _losses(tmp_path / "two")
    assert [step for step, _ in theirs] == [1, 2, 3, 4, 5]
    # The last step of an epoch is filled up differently.
    np.testing.assert_allclose([x for _, x in ours][:4], [x for _, x in theirs][:4], rtol=1e-4)


@pytest.mark.parametrize("layout", ["native", "hub"])
def test_adapters_are_merged_and_continue(byte_vlm: Path, data: Path, tmp_path: Path, layout: str) -> None:
    changes: dict[str, Any] = {"training": "lora", "layout": layout, "learning_rate": 1e-2}
    whole = finetune(_settings(byte_vlm, data, tmp_path / "whole", **changes), cpu=True)
    losses = [loss for _, loss in _losses(whole)]
    assert losses[-1] < losses[0] - 0.02
    output = tmp_path / "continued"
    shutil.copytree(whole, output)
    for stopped in ("checkpoint-9", "checkpoint-10"):
        shutil.rmtree(output / stopped)
    finetune(_settings(byte_vlm, data, output, resume=True, **changes), cpu=True)
    assert _losses(output) == _losses(whole)
    rows = []
    for folder in (whole, output, whole / "checkpoint-3", byte_vlm):
        backbone = load_backbone(VLMSettings(folder, prompt_profile=data / "profile.json"), dtype=torch.float32)
        rows.append(backbone.content_rows(backbone.prepare(observation(2))))
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2], atol=1e-3)
    assert not torch.allclose(rows[2], rows[3], atol=1e-3)


def test_the_base_is_not_changed_by_adapters_of_nothing(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    settings = _settings(byte_vlm, data, tmp_path / "run", training="lora", learning_rate=1e-20, max_steps=1)
    merged = load_backbone(finetune(settings, cpu=True), dtype=torch.float32)
    base = load_backbone(VLMSettings(byte_vlm, prompt_profile=data / "profile.json"), dtype=torch.float32)
    ours, theirs = merged.model.state_dict(), base.model.state_dict()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_bad_samples_on_the_way_are_skipped_and_named(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    settings = _settings(byte_vlm, folder, tmp_path / "run", epochs=1)
    for name in ("3.png", "4.png"):
        path = folder / "images" / name
        path.write_bytes(path.read_bytes()[:50])
    finetune(settings, cpu=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped_0.jsonl").read_text().splitlines()]
    assert {line["name"] for line in lines} == {"qa line 4", "qa line 5"}
    assert "cannot be decoded" in lines[0]["reason"]
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["skipped"] for entry in history if "skipped" in entry][-1] == len(lines)


def test_data_that_is_gone_stops_the_run(
    byte_vlm: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_data(folder, trajectory_records(folder / "profile.json"))
    monkeypatch.setattr(trainer_module, "MOST_SKIPPED_IN_A_ROW", 6)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"samples in a row could not be read.*continue with --resume"):
        finetune(_settings(byte_vlm, folder, tmp_path / "run"), cpu=True)


def test_broken_data_is_refused_before_training(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    records = [*trajectory_records(tmp_path / "profile.json", 6), "{broken", talk("?", "!", image="gone.png")]
    folder.mkdir()
    write_data(folder, records)
    shutil.copy(data / "profile.json", folder / "profile.json")
    with pytest.raises(InvalidData, match=r"(?s)2 record.*line 7: not valid JSON.*line 8: .*gone.png.*--skip-broken"):
        finetune(_settings(byte_vlm, folder, tmp_path / "run"), cpu=True)
    output = finetune(
        _settings(byte_vlm, folder, tmp_path / "run", skip_broken=True, epochs=1, max_tokens=320), cpu=True
    )
    left_out = [json.loads(line) for line in (output / "left_out.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in left_out][-2:] == [7, 8]
    with pytest.raises(InvalidData, match="all 6 records are longer than max_tokens=10"):
        finetune(_settings(byte_vlm, folder, tmp_path / "none", skip_broken=True, max_tokens=10), cpu=True)


def test_a_run_is_not_overwritten_or_mixed(byte_vlm: Path, data: Path, whole_run: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"holds a run \(checkpoint-10\): add --resume"):
        finetune(_settings(byte_vlm, data, whole_run), cpu=True)
    with pytest.raises(InvalidSetting, match=r"other settings: learning_rate=0.5 \(was 0.001\)"):
        finetune(_settings(byte_vlm, data, whole_run, resume=True, learning_rate=0.5), cpu=True)


def test_other_data_is_not_continued_with(byte_vlm: Path, data: Path, whole_run: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(data, tmp_path / "data")
    lines = (changed / "qa.jsonl").read_text().splitlines(keepends=True)
    settings = _settings(byte_vlm, data, whole_run, resume=True)
    swapped = "".join([lines[1], lines[0], *lines[2:]])
    for annotation, entry, message in (
        (swapped, {}, r"other data: qa=.*'sha256': '[0-9a-f]{64}'.*\(was .*'sha256'"),
        ("".join(lines[:-1]), {}, r"'usable_records': 17.*was .*'usable_records': 18"),
        ("".join(lines), {"repeat_time": 2}, r"'repeat_time': 2.*was .*'repeat_time': 1"),
    ):
        (changed / "qa.jsonl").write_text(annotation)
        mixture = {"qa": {"root": str(changed), "annotation": str(changed / "qa.jsonl"), **entry}}
        with _other_mixture(data / "mixture.json", json.dumps(mixture)), pytest.raises(InvalidSetting, match=message):
            finetune(settings, cpu=True)


@contextmanager
def _other_mixture(path: Path, text: str) -> Iterator[None]:
    """Another content for a mixture file, as the settings name it."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


def test_the_base_model_is_not_written_over(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    base = shutil.copytree(byte_vlm, tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    nested = shutil.copytree(byte_vlm, tmp_path / "run" / "checkpoint-3")
    other = shutil.copytree(byte_vlm, tmp_path / "other")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for model, output, message in (
        (base, base, "is the folder of the base model"),
        (base, tmp_path / "link", "is the folder of the base model"),
        (nested, tmp_path / "run", "is a checkpoint of output=.* which the run would replace or delete"),
        (base, other, r"holds a model that no fine-tuning run wrote \(finetuning.json is missing\)"),
    ):
        with pytest.raises(InvalidSetting, match=message):
            finetune(_settings(model, data, output, resume=True), cpu=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_the_datas_profile_is_saved_and_checked(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    write_data(folder, trajectory_records(folder / "profile.json", 4), prompt_profile="profile.json")
    settings = _settings(byte_vlm, folder, tmp_path / "run", prompt_profile="auto", max_steps=1)
    output = finetune(settings, cpu=True)
    assert PromptProfile.load(output / "prompt_profile.json") == PromptProfile.load(folder / "profile.json")
    other = tmp_path / "other.json"
    other.write_text(replace(PromptProfile.load(folder / "profile.json"), before_command=" go ").to_json())
    with pytest.raises(InvalidData, match=r"qa: .*qa.jsonl line 1 asks for a trajectory in other words"):
        finetune(_settings(byte_vlm, folder, tmp_path / "no", prompt_profile=str(other)), cpu=True)
    assert not (tmp_path / "no").exists()


def test_a_full_disk_stops_with_a_clear_error(byte_vlm: Path, data: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = (byte_vlm / "model.safetensors").stat().st_size
    # Weights of 4 bytes fit, the optimiser's state of twice as much does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * weights, hard))
    try:
        with pytest.raises(CannotSave, match=r"checkpoint-3 cannot be saved, the disk or a quota is full"):
            finetune(_settings(byte_vlm, data, tmp_path / "run"), cpu=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last_checkpoint(tmp_path / "run") is None


def test_command_line_errors(
    byte_vlm: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profile = ["--prompt-profile", str(data / "profile.json")]
    (tmp_path / "empty").mkdir()
    empty = write_data(tmp_path / "empty", [])
    zero = REPOSITORY / "scripts" / "pretraining" / "zero3.json"
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("deepspeed", "flash_attn") else found(name)
    )
    common = ["--mixture", str(data / "mixture.json"), "--output", str(tmp_path / "run"), "--cpu"]
    for arguments, message in (
        (["--model", str(tmp_path / "nowhere"), *common], "no VLM checkpoint"),
        (["--model", str(byte_vlm), *common, "--max-tokens", "99999"], "more than the model's 32768"),
        (["--model", str(byte_vlm), *common, "--prompt-profile", "other"], "no prompt profile 'other'"),
        (["--model", str(byte_vlm), *common, "--warmup-ratio", "2"], "warmup_ratio must lie in"),
        (["--model", str(byte_vlm), *common], "token ids stand for other text in this tokenizer's vocabulary"),
        (["--model", str(byte_vlm), *common, *profile, "--mixture", "no.json"], "no mixture 'no.json'"),
        (["--model", str(byte_vlm), *common, "--report-to", "paper"], "report_to must be none, all or one of"),
        (["--model", str(byte_vlm), *common, "--deepspeed", "no.json"], "deepspeed=no.json is not a file"),
        (["--model", str(byte_vlm), *common, "--deepspeed", str(data / "qa.jsonl")], "is not valid JSON"),
        (["--model", str(byte_vlm), *common, "--deepspeed", str(zero)], "DeepSpeed is not installed"),
        (["--model", str(byte_vlm), *common, "--attention", "flash_attention_2"], "the package flash-attn"),
        (["--model", str(byte_vlm), *common, *profile, "--mixture", str(empty)], "qa.jsonl is empty"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
