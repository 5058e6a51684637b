"""Mixtures, and what ``check`` and ``stats`` say about data with known faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navsim_recogdrive.pretraining.datasets import main
from navsim_recogdrive.pretraining.images import BadImage, decoded_image_size
from navsim_recogdrive.pretraining.registry import (
    Entry,
    InvalidMixture,
    builtin_mixtures,
    load_mixture,
    write_mixture,
)
from navsim_recogdrive.pretraining.scan import Contents, Reading, licence_is_known, percentile, scan

PAPER = {
    "navsim_traj", "navsim_recogdrive", "drivelm", "nuinstruct", "nuscenes_qa", "omnidrive", "senna", "lingoqa",
    "drama", "maplm", "talk2car", "drivegpt4", "coda_lm", "sutd_trafficqa", "bench2drive",
}  # fmt: skip


def _sample(name: int, image: object = "0.png", question: str = "<image>\nWhere?", **fields) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "There."}]
    return {"id": name, **({} if image is None else {"image": image}), "conversations": turns, **fields}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of 700 samples with four faults; its mixture is ``mixture.json``."""
    images = tmp_path / "images"
    images.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8))
    for number in range(3):
        picture.save(images / f"{number}.png")
    picture.save(images / "whole.jpg")
    whole = (images / "whole.jpg").read_bytes()
    (images / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").touch()
    lines = [json.dumps(_sample(number, f"{number % 3}.png", width=64, height=40)) for number in range(700)]
    lines[10] = lines[10][:-20]
    lines[299] = json.dumps(_sample(299, "torn.jpg"))
    lines[300] = json.dumps(_sample(300, "nowhere.jpg"))
    lines[301] = json.dumps(_sample(301, "empty.jpg"))
    lines[500] = json.dumps(_sample(500, "1.png", width=64, height=41))
    lines[600] = json.dumps(_sample(600, ["0.png", "1.png"], "<image> <image> Which?"))
    lines[601] = json.dumps(_sample(601, None, "What is a red light?"))
    lines[602] = ""
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    entry = {"root": "images", "annotation": "data.jsonl", "data_augment": False, "repeat_time": 1, "length": 694}
    (tmp_path / "mixture.json").write_text(json.dumps({"set": {**entry, "licence": "CC0"}}))
    return tmp_path


def _scan(data: Path, workers: int = 1, **reading) -> tuple[Contents, list[tuple[int, str]]]:
    problems: list[tuple[int, str]] = []
    entry = load_mixture(data / "mixture.json")["set"]
    contents = scan(
        "set", entry, Reading(**reading), workers, lambda problem: problems.append((problem.line, problem.kind))
    )
    return contents, problems


@pytest.mark.parametrize("workers", [1, 2])
def test_every_fault_is_found_with_its_line(data: Path, workers: int) -> None:
    contents, problems = _scan(data, workers)
    assert problems == [
        (11, "broken line"),
        (300, "image broken"),
        (301, "image missing"),
        (302, "image empty"),
        (501, "image size differs"),
    ]
    assert (contents.lines, contents.samples) == (700, 694)
    assert contents.images == {1: 692, 2: 1, 0: 1}
    assert contents.turns == {1: 694}
    assert contents.sizes == {(64, 40): 692}


def test_check_says_what_is_wrong_and_writes_lengths(data: Path, capsys, tmp_path: Path) -> None:
    mixture, report, counted = (str(data / name) for name in ("mixture.json", "report.jsonl", "counted.json"))
    assert (
        main(["check", mixture, "--workers", "1", "--show", "2", "--report", report, "--write-lengths", counted]) == 1
    )
    shown = capsys.readouterr().out
    assert "set: 694 samples, 5 problems; licence: CC0" in shown
    assert "line 11: broken line" in shown
    assert "... and 3 more" in shown
    assert [json.loads(line)["line"] for line in Path(report).read_text().splitlines()] == [11, 300, 301, 302, 501]
    again = load_mixture(counted)["set"]
    assert (again.length, again.root) == (694, str(data / "images"))


def test_a_clean_set_passes_and_another_length_does_not(data: Path, capsys) -> None:
    lines = (data / "data.jsonl").read_text().splitlines()[:10]
    (data / "data.jsonl").write_text("\n".join(lines))
    content = json.loads((data / "mixture.json").read_text())
    content["set"].update(length=10, licence="unknown")
    (data / "mixture.json").write_text(json.dumps(content))
    assert main(["check", str(data / "mixture.json"), "--workers", "1"]) == 0
    assert "10 samples, 0 problems; licence: UNKNOWN" in capsys.readouterr().out
    content["set"]["length"] = 11
    (data / "mixture.json").write_text(json.dumps(content))
    assert main(["check", str(data / "mixture.json"), "--workers", "1"]) == 1
    assert "length differs: the mixture says 11, 10 lines" in capsys.readouterr().out


def test_check_writes_how_questions_are_asked_as_it_was_read(data: Path) -> None:
    content = json.loads((data / "mixture.json").read_text())
    content["set"].update(prompt_profile="three_cameras", cameras=["front_left", "front", "front_right"])
    (data / "mixture.json").write_text(json.dumps(content))
    counted = data / "counted.json"
    arguments = [
        "check",
        str(data / "mixture.json"),
        "--workers",
        "1",
        "--skip-images",
        "--write-lengths",
        str(counted),
    ]
    assert main(arguments) == 1
    again = json.loads(counted.read_text())["set"]
    assert (again["prompt_profile"], again["cameras"]) == ("three_cameras", ["front_left", "front", "front_right"])


def test_relative_roots_become_absolute_and_links_stay(data: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(data.parent)
    (data.parent / "link").symlink_to(data)
    entry = load_mixture("link/mixture.json")["set"]
    assert (entry.root, entry.annotation) == (str(data.parent / "link/images"), str(data.parent / "link/data.jsonl"))
    assert main(["template", "recogdrive", "--data-root", "link"]) == 0
    assert json.loads(capsys.readouterr().out)["navsim_traj"]["root"] == str(data.parent / "link" / "navsim")


def test_files_that_are_not_there(data: Path, capsys) -> None:
    (data / "data.jsonl").write_text("")
    assert _scan(data)[1] == [(0, "empty annotation file"), (0, "length differs")]
    (data / "data.jsonl").unlink()
    assert _scan(data)[1] == [(0, "no annotation file")]
    assert main(["check", str(data / "mixture.json"), "--only", "other"]) == 2
    assert "no data set 'other'; it has ['set']" in capsys.readouterr().err
    assert main(["check", str(data / "nothing.json")]) == 2
    assert "give a JSON file, or one of the built-in" in capsys.readouterr().err


def test_lines_that_the_fine_tuner_refuses_are_problems(data: Path, capsys) -> None:
    good, bad = _sample(0), _sample(1)
    bad["conversations"][1]["value"] = "There.<|im_end|>"
    (data / "data.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    assert main(["check", str(data / "mixture.json"), "--workers", "1"]) == 1
    shown = capsys.readouterr().out
    assert "set: 1 samples, 2 problems" in shown, "the length differs too"
    assert "line 2: broken line: the assistant's text spells out <|im_end|>" in shown


def test_skipping_images_touches_none(data: Path) -> None:
    for path in (data / "images").iterdir():
        path.unlink()
    assert _scan(data, decode_images=False)[1] == [(11, "broken line"), (0, "length differs")]


def test_stats(data: Path, capsys, tiny_vlm: Path) -> None:
    assert main(["stats", str(data / "mixture.json"), "--json", "--workers", "1", "--tokenizer", str(tiny_vlm)]) == 0
    numbers = json.loads(capsys.readouterr().out)["set"]
    assert numbers["samples"] == 699 - 1
    assert numbers["images_per_sample"] == {"0": 1, "1": 696, "2": 1}
    assert numbers["image_sizes"] == {"64x40": 692, "64x41": 1}
    from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer

    tokenizer = load_qwen2_tokenizer(tiny_vlm)
    usual = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in ("<image>\nWhere?", "There."))
    assert numbers["text_tokens_per_sample"]["median"] == usual
    assert main(["stats", str(data / "mixture.json"), "--workers", "1"]) == 0
    assert "samples 698" in capsys.readouterr().out


def test_percentiles() -> None:
    values = [1] * 50 + [2] * 45 + [9] * 5
    counts = {value: values.count(value) for value in set(values)}
    for share in (0.1, 0.5, 0.51, 0.95, 0.96, 1.0):
        assert percentile(counts, share) == np.quantile(values, share, method="inverted_cdf")
    assert percentile({}, 0.5) == 0


def test_the_papers_mixture(tmp_path: Path, capsys) -> None:
    assert builtin_mixtures() == ["recogdrive"]
    mixture = load_mixture("recogdrive", tmp_path)
    assert set(mixture) == PAPER
    for name, entry in mixture.items():
        assert entry.homepage.startswith("https://"), name
        assert Path(entry.root).is_absolute()
        assert entry.annotation == str(tmp_path / "annotations" / f"{name}.jsonl")
    assert {name for name, entry in mixture.items() if not licence_is_known(entry)} == {
        "nuinstruct", "senna", "lingoqa", "drama", "drivegpt4", "sutd_trafficqa",
    }  # fmt: skip
    with pytest.raises(InvalidMixture, match="needs the folder of the data"):
        load_mixture("recogdrive")
    assert main(["template", "recogdrive", "--data-root", str(tmp_path)]) == 0
    content = json.loads(capsys.readouterr().out)
    assert not {"prompt_profile", "cameras"} & set(content["navsim_traj"])
    assert list(content["drivelm"])[:5] == ["root", "annotation", "data_augment", "repeat_time", "length"]


def test_mixtures_are_read_back(tmp_path: Path, monkeypatch) -> None:
    entries = {
        "a": Entry("/data", "/a.jsonl", True, 0.5, 7, "MIT", "https://example.org", "note"),
        "b": Entry("/", "/b"),
        "c": Entry("/", "/c", prompt_profile="published", cameras=("front",)),
        "d": Entry("/", "/d", prompt_profile="/d.prompt_profile.json", cameras=("front_left", "front", "front_right")),
    }
    write_mixture(tmp_path / "m.json", entries)
    assert load_mixture(tmp_path / "m.json") == entries
    monkeypatch.setenv("SOMEWHERE", "/far")
    monkeypatch.delenv("NOWHERE", raising=False)
    path = tmp_path / "n.json"
    path.write_text('{"a": {"root": "$SOMEWHERE/x", "annotation": "y.jsonl", "max_dynamic_patch": 12}}')
    assert load_mixture(path)["a"] == Entry("/far/x", str(tmp_path / "y.jsonl"))
    path.write_text('{"a": {"root": ".", "annotation": "y.jsonl", "prompt_profile": "own.json"}}')
    assert load_mixture(path)["a"].prompt_profile == str(tmp_path / "own.json")
    path.write_text('{"a": {"root": "$NOWHERE/x", "annotation": "y.jsonl"}}')
    with pytest.raises(InvalidMixture, match="data set 'a': a variable in the path"):
        load_mixture(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "must be a JSON object"),
        ('{"a": 1}', "must be an object, found 1"),
        ('{"a": {"root": "x"}}', "annotation must be a path, found None"),
        ('{"a": {"root": "x", "annotation": "y", "repeat_time": 0}}', "repeat_time must be a number above 0, found 0"),
        ('{"a": {"root": "x", "annotation": "y", "repeat_time": true}}', "repeat_time must be a number"),
        ('{"a": {"root": "x", "annotation": "y", "length": -1}}', "length must be a whole number"),
        ('{"a": {"root": "x", "annotation": "y", "data_augment": 1}}', "data_augment must be true or false"),
        ('{"a": {"root": "x", "annotation": "y", "licence": 1}}', "licence must be a text"),
        ('{"a": {"root": "x", "annotation": "y", "prompt_profile": null}}', "prompt_profile must be a text"),
        ('{"a": {"root": "x", "annotation": "y", "cameras": "front"}}', "cameras must be a list of names, found 'fr"),
    ],
)
def test_mixtures_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(InvalidMixture, match=message):
        load_mixture(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.97])
def test_torn_images_are_found(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)).save(path)
    assert decoded_image_size(path) == (160, 90)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadImage, match="empty" if share == 0.0 else "broken"):
        decoded_image_size(path)
