"""The whole pipeline against a local server: what is asked, what comes out, what is asked again."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from label_runs import FAMILIES, read_answers, read_lines, run_arguments
from label_scenes import busy_scene, scene, sensible, write_scenes
from label_server import Answer, Behaviour, Body, ChatServer, is_probe, system_of, text_of

pytest.importorskip("openai", reason="the client needs the extra 'labels'")
pytest.importorskip("tenacity", reason="the client needs the extra 'labels'")

from navsim_recogdrive.pretraining.labelling.__main__ import main
from navsim_recogdrive.pretraining.registry import load_mixture


def test_samples_come_in_internvl_s_format_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("b"), scene("a", future=False)])
    with ChatServer(sensible) as server:
        assert main(run_arguments(tmp_path, server.url, "--price-in", "3", "--price-out", "10")) == 0
    samples = read_lines(tmp_path / "out.jsonl")
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
    assert mixture["out"].licence.endswith("the terms of the VLM that answered")
    requests = 3 * (FAMILIES + 4)
    assert f"tiny: {requests} requests, {requests * 100} tokens in, {requests * 10} out" in said
    assert f"cost {requests * (300 + 100) / 1e6:.2f}" in said
    assert "requests/s" in said


def test_each_step_is_told_what_it_needs(tmp_path: Path) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    with ChatServer(sensible) as server:
        assert main(run_arguments(tmp_path, server.url, "--families", "planning_decision")) == 0
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
    question = read_lines(tmp_path / "out.jsonl")[0]["conversations"][0]["value"].removeprefix("<image>\n")
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
            assert main(run_arguments(tmp_path / name, server.url, "--concurrency", concurrency)) == 0
        made.append((tmp_path / name / "out.jsonl").read_bytes())
        assert server.most_at_once <= int(concurrency)
    assert server.most_at_once > 4
    assert made[0] == made[1]
    assert len(made[0].splitlines()) == 4 * FAMILIES


def test_nothing_is_asked_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    with ChatServer(sensible) as server:
        assert main(run_arguments(tmp_path, server.url)) == 0
        first = (tmp_path / "out.jsonl").read_bytes()
        asked = len(server.asked)
        assert main(run_arguments(tmp_path, server.url)) == 0
        assert len(server.asked) == asked == 3 * FAMILIES
        assert "nothing had to be asked" in capsys.readouterr().out
        write_scenes(tmp_path, [busy_scene("zero"), busy_scene("one")])  # more scenes, in another order
        assert main(run_arguments(tmp_path, server.url)) == 0
        assert len(server.asked) == 2 * asked
    assert (tmp_path / "out.jsonl").read_bytes().endswith(first)


def test_changed_templates_ask_again_what_they_change(tmp_path: Path) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    own = tmp_path / "own"
    assert main(["templates", str(own)]) == 0
    with ChatServer(sensible) as server:
        assert main(run_arguments(tmp_path, server.url, "--templates", str(own))) == 0
        asked = len(server.asked)
        density = own / "traffic_density.yaml"
        density.write_text(density.read_text().replace("The word is that of the facts", "The word is exactly right"))
        assert main(run_arguments(tmp_path, server.url, "--templates", str(own))) == 0
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
        assert main(run_arguments(tmp_path, server.url, "--families", ",".join(families))) == 0
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
    steps = Counter((line["family"], line["step"]) for line in read_answers(tmp_path))
    assert steps["traffic_density", "judging"] == 3
    assert steps["counterfactual_risk", "refinement"] == 0
    assert steps["scene_description", "judging"] == 0
    # Another threshold needs no server.
    arguments = run_arguments(tmp_path, server.url, "--families", ",".join(families))
    export = [
        "export",
        *arguments[1 : arguments.index("--base-url")],
        "--model",
        "tiny",
        "--families",
        ",".join(families),
    ]
    assert main([*export, "--threshold", "6.5"]) == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 3
    assert "3 samples" in capsys.readouterr().out
