"""The whole pipeline against a local server: what is kept, what is asked again, what comes out."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from label_scenes import busy_scene, scene, sensible, write_scenes
from label_server import Answer, Behaviour, Body, ChatServer, Disconnect, Raw, Status, is_probe, system_of, text_of

pytest.importorskip("openai", reason="the client needs the extra 'labels'")
pytest.importorskip("tenacity", reason="the client needs the extra 'labels'")

from navsim_recogdrive.pretraining.labelling.__main__ import main
from navsim_recogdrive.pretraining.registry import load_mixture

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-a-very-secret-key"
FAMILIES = 9


def _arguments(folder: Path, server: str, *more: str) -> list[str]:
    arguments = [
        "run",
        str(folder / "records.jsonl"),
        "--data-root",
        str(folder),
        "--output",
        str(folder / "out.jsonl"),
    ]
    return [*arguments, "--base-url", server, "--model", "tiny", "--patience", "2", "--timeout", "5", *more]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _answers(folder: Path) -> list[dict[str, Any]]:
    return _lines(folder / "out.jsonl.answers.jsonl")


def _start(folder: Path, server: ChatServer, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "navsim_recogdrive.pretraining.labelling", *_arguments(folder, server.url, *more)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come to pass within a minute")


def _distinct(server: ChatServer) -> int:
    return len({json.dumps(body, sort_keys=True) for body in server.asked})


def test_samples_come_in_internvl_s_format_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("b"), scene("a", future=False)])
    with ChatServer(sensible) as server:
        assert main(_arguments(tmp_path, server.url, "--price-in", "3", "--price-out", "10")) == 0
    samples = _lines(tmp_path / "out.jsonl")
    assert len(samples) == FAMILIES + 4  # without a future, five families have no case
    assert [sample["id"] for sample in samples] == sorted(
        (one["id"] for one in samples), key=lambda i: (i[0] != "b", i)
    )
    first = samples[0]
    assert set(first) == {"id", "image", "width", "height", "conversations"}
    assert (first["image"], first["width"], first["height"]) == ("images/b.jpg", 192, 108)
    human, gpt = first["conversations"]
    assert (human["from"], gpt["from"]) == ("human", "gpt")
    assert human["value"].startswith("<image>\n")
    assert gpt["value"].startswith("A careful answer.")
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert (summary["samples"], summary["scenes"]) == (FAMILIES + 4, 2)
    assert summary["families"]["planning_decision"] == {
        "verdicts": {"passed": 1},
        "not_applicable": 1,
        "mean_score": 8.0,
        "scores": {"8": 1},
        "faults": {},
    }
    said = capsys.readouterr().out
    mixture = load_mixture(tmp_path / "out.mixture.json")
    assert (mixture["out"].root, mixture["out"].length) == (str(tmp_path), FAMILIES + 4)
    assert mixture["out"].annotation == str(tmp_path / "out.jsonl")
    requests = 3 * (FAMILIES + 4)
    assert f"tiny: {requests} requests, {requests * 100} tokens in, {requests * 10} out" in said
    assert f"cost {requests * (300 + 100) / 1e6:.2f}" in said
    assert "requests/s" in said


def test_each_step_is_told_what_it_needs(tmp_path: Path) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    with ChatServer(sensible) as server:
        assert main(_arguments(tmp_path, server.url, "--families", "planning_decision")) == 0
    draft, refinement, judging = server.asked
    decision = "keeps its speed (from 8.0 to 8.0 m/s)"
    for body in (draft, refinement, judging):
        assert decision in text_of(body)
        image, text = body["messages"][-1]["content"]
        assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
        assert text["type"] == "text"
    assert "A draft." in text_of(refinement)
    assert "A careful answer." in text_of(judging)
    assert (draft["temperature"], refinement["temperature"], judging["temperature"]) == (0.7, 0.0, 0.0)
    question = _lines(tmp_path / "out.jsonl")[0]["conversations"][0]["value"].removeprefix("<image>\n")
    assert decision not in question  # the answer is not in the question
    assert "8.0 m/s" in question  # what the image cannot show is


def test_the_same_samples_whatever_the_order_of_the_answers(tmp_path: Path) -> None:
    made = []
    for name, concurrency in (("slow", "1"), ("fast", "16")):
        write_scenes(tmp_path / name, [busy_scene(str(number)) for number in range(4)])

        def behave(body: Body) -> Behaviour:
            time.sleep(random.uniform(0.0, 0.02))
            return sensible(body)

        with ChatServer(behave) as server:
            assert main(_arguments(tmp_path / name, server.url, "--concurrency", concurrency)) == 0
        made.append((tmp_path / name / "out.jsonl").read_bytes())
        assert server.most_at_once <= int(concurrency)
    assert server.most_at_once > 4
    assert made[0] == made[1]
    assert len(made[0].splitlines()) == 4 * FAMILIES


def test_nothing_is_asked_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    with ChatServer(sensible) as server:
        assert main(_arguments(tmp_path, server.url)) == 0
        first = (tmp_path / "out.jsonl").read_bytes()
        asked = len(server.asked)
        assert main(_arguments(tmp_path, server.url)) == 0
        assert len(server.asked) == asked == 3 * FAMILIES
        assert "nothing had to be asked" in capsys.readouterr().out
        write_scenes(tmp_path, [busy_scene("zero"), busy_scene("one")])  # more scenes, in another order
        assert main(_arguments(tmp_path, server.url)) == 0
        assert len(server.asked) == 2 * asked
    assert (tmp_path / "out.jsonl").read_bytes().endswith(first)


def test_changed_templates_ask_again_what_they_change(tmp_path: Path) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    own = tmp_path / "own"
    assert main(["templates", str(own)]) == 0
    with ChatServer(sensible) as server:
        assert main(_arguments(tmp_path, server.url, "--templates", str(own))) == 0
        asked = len(server.asked)
        density = own / "traffic_density.yaml"
        density.write_text(density.read_text().replace("The word is that of the facts", "The word is exactly right"))
        assert main(_arguments(tmp_path, server.url, "--templates", str(own))) == 0
        assert [system_of(body)[:27] for body in server.asked[asked:]] == ["You are a strict examiner o"]


def test_a_threshold_and_rules_drop_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    families = ["agent_behaviour", "counterfactual_risk", "scene_description", "traffic_density", "traffic_lights"]
    families += ["vulnerable_road_users", "planning_decision"]

    def behave(body: Body) -> Behaviour:
        text = "" if is_probe(body) else text_of(body)
        role = system_of(body)
        if "If the ego vehicle" in text and "instructor" in role:
            return Answer("cut o", "length")
        if "editor" in role and "kind of road and its lanes" in text:
            return Answer("The facts say: a road.")
        if "editor" in role and "Pedestrians and cyclists in the image" in text:
            return Answer("Nobody.")
        if "examiner" in role and "Traffic: light" in text:
            return Answer("No idea.")
        if "examiner" in role and "Colours agree" in text:
            return Answer('{"score": 6.9}')
        if "examiner" in role and "Speed and path are the expert's" in text:
            return Answer('{"score": 7}')
        return sensible(body)

    with ChatServer(behave) as server:
        assert main(_arguments(tmp_path, server.url, "--families", ",".join(families))) == 0
    verdicts = json.loads((tmp_path / "out.jsonl.summary.json").read_text())["families"]
    assert {name: (family["verdicts"], family["faults"]) for name, family in verdicts.items()} == {
        "agent_behaviour": ({"passed": 1}, {}),
        "counterfactual_risk": ({"faulty": 1}, {"draft cut off": 1}),
        "planning_decision": ({"passed": 1}, {}),
        "scene_description": ({"faulty": 1}, {"speaks of the facts": 1}),
        "traffic_density": ({"unjudged": 1}, {}),
        "traffic_lights": ({"low score": 1}, {}),
        "vulnerable_road_users": ({"faulty": 1}, {"box left out": 1}),
    }
    # A judge without a score is reminded twice; faulty answers are not judged.
    steps = Counter((line["family"], line["step"]) for line in _answers(tmp_path))
    assert steps["traffic_density", "judging"] == 3
    assert steps["counterfactual_risk", "refinement"] == 0
    assert steps["scene_description", "judging"] == 0
    # Another threshold needs no server.
    arguments = _arguments(tmp_path, server.url, "--families", ",".join(families))
    export = [
        "export",
        *arguments[1 : arguments.index("--base-url")],
        "--model",
        "tiny",
        "--families",
        ",".join(families),
    ]
    assert main([*export, "--threshold", "6.5"]) == 0
    assert len(_lines(tmp_path / "out.jsonl")) == 3
    assert "3 samples" in capsys.readouterr().out


def test_troubles_on_the_way_leave_no_trace(tmp_path: Path) -> None:
    write_scenes(tmp_path / "calm", [busy_scene("one"), busy_scene("two")])
    write_scenes(tmp_path / "rough", [busy_scene("one"), busy_scene("two")])
    with ChatServer(sensible) as server:
        assert main(_arguments(tmp_path / "calm", server.url)) == 0
    draw = random.Random(0)
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def behave(body: Body) -> Behaviour:
        with lock:
            trouble = draw.choice(
                [Status(429, {"Retry-After": "0.05"}), Status(500), Raw(b"{"), Disconnect(), None, None, None, None]
            )
            first = seen[json.dumps(body)] == 0
            seen[json.dumps(body)] += 1
        return trouble if trouble is not None and first and not is_probe(body) else sensible(body)

    with ChatServer(behave) as server:
        assert main(_arguments(tmp_path / "rough", server.url, "--patience", "60")) == 0
    assert len(server.asked) > 2 * 3 * FAMILIES  # there was trouble
    assert (tmp_path / "rough" / "out.jsonl").read_bytes() == (tmp_path / "calm" / "out.jsonl").read_bytes()


def test_a_refused_request_costs_one_question_and_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
    (tmp_path / "images" / "two.jpg").write_bytes(b"")

    def behave(body: Body) -> Behaviour:
        refused = not is_probe(body) and "Traffic: light" in text_of(body)
        return Status(400, message="against our policy") if refused else sensible(body)

    with ChatServer(behave) as server:
        assert main(_arguments(tmp_path, server.url)) == 0
        said = capsys.readouterr().out
        assert len(_lines(tmp_path / "out.jsonl")) == FAMILIES - 2  # density, and the description which names it
        assert f"{2 + FAMILIES} questions have no answer" in said
        write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
        server.behave = sensible
        assert main(_arguments(tmp_path, server.url)) == 0
    assert len(_lines(tmp_path / "out.jsonl")) == 2 * FAMILIES


def test_no_server_is_said_at_once_and_no_scene_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").write_text("not a scene\n")
    server = ChatServer(sensible).start()
    server.stop()
    begun = time.monotonic()
    assert main(_arguments(tmp_path, server.url, "--patience", "600")) == 1
    assert time.monotonic() - begun < 10.0
    assert f"the server at {server.url} does not answer" in capsys.readouterr().err


def test_check_tries_both_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ChatServer(sensible) as server, ChatServer(lambda body: Status(401)) as judge:
        arguments = ["check", "--base-url", server.url, "--model", "tiny"]
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{server.url} answers as tiny\n"
        assert main([*arguments, "--judge-base-url", judge.url, "--judge-model", "big"]) == 1
        assert f"the server at {judge.url} refuses" in capsys.readouterr().err
    assert server.asked == judge.asked == []


def test_a_server_that_goes_away_is_waited_for_then_all_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, [busy_scene(str(number)) for number in range(3)])

    def behave(body: Body) -> Behaviour:
        if len(server.asked) > 20:
            threading.Thread(target=server.stop).start()
            return Disconnect()
        return sensible(body)

    with ChatServer(behave) as server:
        begun = time.monotonic()
        assert main(_arguments(tmp_path, server.url, "--concurrency", "4")) == 1
        assert time.monotonic() - begun >= 2.0  # the patience
        error = capsys.readouterr().err
        assert "has answered nothing for 2 s" in error
        assert "the same command continues" in error
        kept = len(_answers(tmp_path))
        assert 16 <= kept <= 20
        assert not (tmp_path / "out.jsonl").exists()
        server.behave, before = sensible, _distinct(server)
        server.start()
        assert main(_arguments(tmp_path, server.url)) == 0
    assert len(_lines(tmp_path / "out.jsonl")) == 3 * FAMILIES
    assert len(_answers(tmp_path)) == _distinct(server) == 3 * 3 * FAMILIES
    assert before < _distinct(server)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_run_keeps_everything_and_goes_on(tmp_path: Path, number: int, code: int) -> None:
    write_scenes(tmp_path, [busy_scene(str(number)) for number in range(3)])
    hold = threading.Event()

    def behave(body: Body) -> Behaviour:
        if len(server.asked) > 20:
            hold.wait(60)
        return sensible(body)

    with ChatServer(behave) as server:
        process = _start(tmp_path, server, "--concurrency", "4", "--timeout", "60")
        _wait_until(lambda: len(server.asked) >= 24)
        answers = tmp_path / "out.jsonl.answers.jsonl"
        _wait_until(lambda: len(answers.read_bytes().splitlines()) == 20)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        if number == signal.SIGINT:
            assert "interrupted; the same command continues" in error
            assert "Traceback" not in error
        hold.set()
        assert len(_answers(tmp_path)) == 20
        with answers.open("ab") as file:
            file.write(b'{"key": "12')  # what a kill in the middle of a line leaves
        server.asked.clear()
        assert main(_arguments(tmp_path, server.url)) == 0
    assert len(server.asked) == 3 * 3 * FAMILIES - 20
    assert len(_lines(tmp_path / "out.jsonl")) == 3 * FAMILIES


def test_a_full_disk_stops_the_run_and_leaves_valid_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ChatServer(sensible) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            assert main(_arguments(tmp_path, server.url)) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "make room and run the command again" in " ".join(capsys.readouterr().err.split())
        kept = len(_answers(tmp_path))
        assert 5 < kept < 3 * FAMILIES
        server.asked.clear()
        assert main(_arguments(tmp_path, server.url)) == 0
        assert len(server.asked) == 3 * FAMILIES - kept
    assert len(_lines(tmp_path / "out.jsonl")) == FAMILIES


def test_a_wrong_data_root_does_not_run_through_all_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene(str(number)) for number in range(50)])
    with ChatServer(sensible) as server:
        arguments = _arguments(tmp_path, server.url)
        arguments[arguments.index("--data-root") + 1] = str(tmp_path / "elsewhere")
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "the first 20 questions all failed, the last one: bad image" in error
    assert "elsewhere" in error
    assert server.asked == []


def test_scenes_are_checked_with_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_scenes(tmp_path, [busy_scene("one")])
    with ChatServer(sensible) as server:
        for line in ("{", "[]", '{"token": "x"}', '{"token": 1e999}'):
            path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
            assert main(_arguments(tmp_path, server.url)) == 1
            assert "records.jsonl, line 2 is no scene record" in capsys.readouterr().err
        path.unlink()
        assert main(_arguments(tmp_path, server.url)) == 1
        assert "cannot read the scenes" in capsys.readouterr().err


def test_a_judge_of_its_own_gets_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    more = ["--judge-model", "big", "--price-in", "1", "--judge-price-in", "2"]
    with ChatServer(sensible) as server, ChatServer(sensible) as judge:
        arguments = _arguments(tmp_path, server.url, *more, "--judge-base-url", judge.url)
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
        process = _start(tmp_path, server)
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
    assert main(_arguments(tmp_path, "http://127.0.0.1:9/v1", *change)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_without_the_client_s_libraries_only_asking_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scenes(tmp_path, [busy_scene("one")])
    monkeypatch.delitem(sys.modules, "navsim_recogdrive.pretraining.labelling.client", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main(["show", str(path), "--model", "tiny"]) == 0
    assert main(_arguments(tmp_path, "http://127.0.0.1:9/v1")) == 2
    assert "pip install 'navsim-recogdrive[labels]'" in capsys.readouterr().err


def test_show_prints_prompts_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
    assert main(["show", str(path), "--model", "tiny", "--families", "traffic_density"]) == 0
    said = capsys.readouterr().out
    assert "=== one traffic_density, image images/one.jpg" in said
    assert "two" not in said.split("===")[1].split(",")[0]
    assert "Traffic: light: within 50 m" in said
    assert main(["placeholders"]) == 0
    assert "vulnerable_road_users" in capsys.readouterr().out
