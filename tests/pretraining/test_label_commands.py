"""The labelling command: its settings, its other commands, and who sees the key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from label_runs import FAMILIES, KEY, run_arguments, start_run
from label_scenes import busy_scene, sensible, write_scenes
from label_server import Answer, Behaviour, Body, ChatServer, Status, is_probe, system_of, text_of

pytest.importorskip("openai", reason="the client needs the extra 'labels'")
pytest.importorskip("tenacity", reason="the client needs the extra 'labels'")

from navsim_recogdrive.pretraining.labelling.__main__ import main
from navsim_recogdrive.pretraining.registry import load_mixture


def test_check_tries_both_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(sensible) as server, ChatServer(lambda body: Status(401)) as judge:
        arguments = ["check", "--base-url", server.url, "--model", "tiny"]
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{server.address} answers as tiny\n"
        assert main([*arguments, "--judge-base-url", judge.url, "--judge-model", "big"]) == 1
        assert f"the server at {judge.address} refuses" in capsys.readouterr().err
    assert server.asked == judge.asked == []


def test_a_judge_of_its_own_gets_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    more = ["--judge-model", "big", "--price-in", "1", "--judge-price-in", "2"]
    with ChatServer(sensible) as server, ChatServer(sensible) as judge:
        arguments = run_arguments(tmp_path, server.url, *more, "--judge-base-url", judge.url)
        assert main(arguments) == 0
    assert {body["model"] for body in server.asked} == {"tiny"}
    assert {body["model"] for body in judge.asked} == {"big"}
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert not [key for key in judge.keys if key and KEY in key]
    assert len(judge.asked) == FAMILIES


def test_the_key_is_in_no_file_and_no_output(tmp_path: Path) -> None:
    write_scenes(tmp_path, [busy_scene("one")])

    def behave(body: Body) -> Behaviour:
        if not is_probe(body) and "Traffic: light" in text_of(body):
            return Status(400, message=f"not with key {KEY}")
        return Answer(f"{KEY}") if not is_probe(body) and "instructor" in system_of(body) else sensible(body)

    with ChatServer(behave) as server:
        process = start_run(tmp_path, server)
        output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert f"Bearer {KEY}" in server.keys
    texts = [output, error, *(path.read_text(errors="replace") for path in tmp_path.iterdir() if path.is_file())]
    assert len(texts) >= 6
    assert not [text for text in texts if KEY in text]
    assert "not with key <key>" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", ""], "no model: give --model"),
        (["--base-url", ""], "no server: give --base-url"),
        (["--base-url", "host:80"], "the base URL must be like"),
        (["--threshold", "11"], "threshold must be within 0..10, found 11"),
        (["--temperature", "-1"], "temperature within 0..2"),
        (["--concurrency", "0"], "concurrency must be at least 1, found 0"),
        (["--image-quality", "0"], "JPEG quality must be within 1..95"),
        (["--families", "weather"], "unknown question families"),
    ],
)
def test_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    assert main(run_arguments(tmp_path, "http://127.0.0.1:9/v1", *change)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_relative_paths_become_absolute_in_the_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "world", [busy_scene("one")])
    monkeypatch.chdir(tmp_path)
    with ChatServer(sensible) as server:
        assert main(run_arguments(Path("world"), server.url, "--families", "traffic_density")) == 0
    entry = load_mixture(tmp_path / "world" / "out.mixture.json")["out"]
    assert (entry.root, entry.annotation) == (str(tmp_path / "world"), str(tmp_path / "world" / "out.jsonl"))


def test_without_the_client_s_libraries_only_asking_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scenes(tmp_path, [busy_scene("one")])
    monkeypatch.delitem(sys.modules, "navsim_recogdrive.pretraining.labelling.client", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(["show", str(path), "--model", "tiny"]) == 0
    assert main(run_arguments(tmp_path, "http://127.0.0.1:9/v1")) == 2
    assert "pip install -e '.[labels]'" in capsys.readouterr().err


def test_show_prints_prompts_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
    assert main(["show", str(path), "--model", "tiny", "--families", "traffic_density"]) == 0
    said = capsys.readouterr().out
    assert "=== one traffic_density, image images/one.jpg" in said
    assert "two" not in said.split("===")[1].split(",")[0]
    assert "Traffic: light: within 50 m" in said
    assert main(["placeholders"]) == 0
    assert "vulnerable_road_users" in capsys.readouterr().out
