"""The whole way against a real OpenAI-compatible server, ``transformers serve``, with a tiny VLM."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from label_scenes import busy_scene, write_scenes

from navsim_recogdrive.pretraining.labelling.labeller import Labeller, Settings
from navsim_recogdrive.pretraining.labelling.templates import Templates
from navsim_recogdrive.pretraining.labelling.tiny_llava import ANSWER, write_llava

_NEEDED = ("fastapi", "uvicorn", "openai", "tenacity")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"transformers serve needs {_MISSING}: pip install '.[test]'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and model of a running server."""
    folder = tmp_path_factory.mktemp("llava")
    write_llava(folder / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command += [str(folder / "tiny"), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            _wait_until_healthy(process, port, folder / "server.log")
            yield f"http://127.0.0.1:{port}/v1", folder / "tiny"
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"transformers serve did not start:\n{log.read_text()[-3000:]}")


def test_generation_refinement_and_judging(server: tuple[str, Path], tmp_path: Path) -> None:
    from navsim_recogdrive.pretraining.labelling.__main__ import main

    address, model = server
    scenes = write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
    output = tmp_path / "labels.jsonl"
    arguments = ["run", str(scenes), "--data-root", str(tmp_path), "--output", str(output), "--base-url", address]
    arguments += ["--model", str(model), "--max-tokens", "16", "--concurrency", "4", "--image-side", "64"]
    assert main(arguments) == 0
    samples = [json.loads(line) for line in output.read_text().splitlines()]
    # All families but the one that must repeat the pedestrian's box.
    assert len(samples) == 2 * 8
    assert {sample["conversations"][1]["value"] for sample in samples} == {ANSWER}
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl.answers.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (9 + 9 + 8)
    assert {line["tokens_out"] for line in lines} == {len(ANSWER) + 1}
    # Each byte is a token, and the image 16 of them: it arrived, and was read.
    labeller = Labeller(Templates.load(), Settings(str(model), str(model)))
    for filled in labeller.questions(busy_scene("one")):
        assert filled is not None
        request = labeller.generation(busy_scene("one"), filled)
        (line,) = (
            line
            for line in lines
            if (line["scene"], line["family"], line["step"]) == ("one", filled.family.name, "generation")
        )
        turns = "|system\n|\n|user\n|\n|assistant\n"  # a bar for each special token
        assert line["tokens_in"] == len(turns) + len(f"{request.system}{request.user}".encode()) + 16


def test_a_model_that_the_server_does_not_have(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from navsim_recogdrive.pretraining.labelling.__main__ import main

    scenes = write_scenes(tmp_path, [busy_scene("one")])
    arguments = ["run", str(scenes), "--data-root", str(tmp_path), "--output", str(tmp_path / "labels.jsonl")]
    assert main([*arguments, "--base-url", server[0], "--model", "another"]) == 1
    assert "another" in capsys.readouterr().err
