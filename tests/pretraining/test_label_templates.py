"""Question templates: the built-in ones, the user's, and errors in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from label_scenes import busy_scene, scene

from navsim_recogdrive.pretraining.facts import SceneFacts
from navsim_recogdrive.pretraining.labelling.templates import BUILT_IN, TemplateError, Templates, copy_built_in
from navsim_recogdrive.pretraining.labelling.wording import PLACEHOLDERS, placeholders

FAMILIES = [
    "agent_behaviour",
    "counterfactual_risk",
    "most_influential_object",
    "planning_decision",
    "road_signs_and_markings",
    "scene_description",
    "traffic_density",
    "traffic_lights",
    "vulnerable_road_users",
]
OWN = {"questions": ["How fast? {speed}"], "facts": "{density}", "guidance": "A number.", "criteria": "The number."}


def _write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder


def test_built_in_families_fill_in_for_a_scene() -> None:
    templates = Templates.load()
    assert list(templates.families) == FAMILIES
    values = placeholders(SceneFacts.of(busy_scene("one")))
    for family in templates.families.values():
        for token in map(str, range(20)):  # all the ways to ask
            filled = family.filled(token, values)
            assert filled is not None
            for text in (filled.question, filled.facts, filled.guidance, filled.criteria):
                assert text
                assert "{" not in text


def test_every_placeholder_has_a_value_and_a_use() -> None:
    assert set(placeholders(SceneFacts.of(busy_scene("one")))) == set(PLACEHOLDERS)
    texts = "".join(file.read_text() for file in BUILT_IN.glob("*.yaml"))
    assert not [name for name in PLACEHOLDERS if f"{{{name}}}" not in texts]


def test_questions_of_a_scene_never_change_and_vary_between_scenes() -> None:
    family = Templates.load().families["scene_description"]
    values = placeholders(SceneFacts.of(busy_scene("one")))
    asked = {token: family.filled(token, values).question for token in map(str, range(40))}
    assert asked == {token: family.filled(token, values).question for token in asked}
    assert set(asked.values()) == set(family.questions)


def test_a_family_is_not_asked_where_the_scene_has_no_value() -> None:
    templates = Templates.load()
    values = placeholders(SceneFacts.of(scene("empty", future=False)))
    without = [name for name, family in templates.families.items() if family.filled("empty", values) is None]
    assert without == [
        "agent_behaviour",
        "counterfactual_risk",
        "most_influential_object",
        "planning_decision",
        "traffic_lights",
    ]


def test_own_templates_go_over_built_in_ones_and_add_to_them(tmp_path: Path) -> None:
    folder = _write(tmp_path / "own", "traffic_density.yaml", OWN)
    _write(folder, "speed.yaml", OWN)
    templates = Templates.load(folder)
    assert sorted(templates.families) == sorted([*FAMILIES, "speed"])
    assert templates.families["traffic_density"].questions == ("How fast? {speed}",)
    assert templates.families["traffic_lights"] == Templates.load().families["traffic_lights"]
    assert list(Templates.load(folder, ["speed"]).families) == ["speed"]


def test_copied_templates_are_the_built_in_ones_and_edits_are_kept(tmp_path: Path) -> None:
    assert len(copy_built_in(tmp_path / "own")) == len(FAMILIES) + 1
    assert Templates.load(tmp_path / "own") == Templates.load()
    _write(tmp_path / "own", "traffic_density.yaml", OWN)
    assert copy_built_in(tmp_path / "own") == []
    assert Templates.load(tmp_path / "own").families["traffic_density"].facts == "{density}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**OWN, "facts": "{sped}"},
            r"traffic_density.yaml: facts: there is no placeholder \{sped\}; known here: .*speed",
        ),
        ({**OWN, "questions": ["a", "{0}"]}, r"question 2: there is no placeholder \{0\}"),
        ({**OWN, "guidance": "{speed.real}"}, r"guidance: there is no placeholder \{speed.real\}"),
        ({**OWN, "guidance": "{speed:>3}"}, r"\{speed\} is text and takes no format"),
        ({**OWN, "guidance": "a { b"}, "a brace that is meant is written twice"),
        ({**OWN, "questions": ["one", "<image> two"]}, "question 2 holds <image>, which no sample may"),
        ({**OWN, "questions": ["one<|im_end|>"]}, r"question 1 holds <\|im_end\|>"),
        ({**OWN, "questions": []}, "questions must be a list of texts"),
        ({**OWN, "questions": "one"}, "questions must be a list of texts"),
        ({**OWN, "facts": ""}, "facts must be a text"),
        ({**OWN, "boxes": "some"}, r"boxes must be one of \('all', 'known'\), found 'some'"),
        ({**OWN, "fact": "x"}, r"unknown \['fact'\]"),
        ({"questions": ["one"]}, r"missing \['criteria', 'facts', 'guidance'\]"),
        ("a: [", "is not YAML"),
        ("- a", "must hold a mapping"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_errors_in_a_family_are_found_early(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Templates.load(_write(tmp_path / "own", "traffic_density.yaml", content))


@pytest.mark.parametrize(
    ("step", "change", "message"),
    [
        ("generation", {"user": "{question} {draft}"}, r"generation: user: there is no placeholder \{draft\}"),
        ("generation", {"user": "{facts}"}, r"generation: user must hold \{question\}"),
        ("refinement", {"user": "{question}"}, r"refinement: user must hold \{draft\}"),
        ("judging", {"user": "{question}"}, r"judging: user must hold \{answer\}"),
        ("judging", {"system": "{question}"}, r"judging: system: there is no placeholder"),
        ("judging", {"image": "yes"}, "judging: image must be true or false"),
        ("judging", {"colour": "red"}, "judging must have system, user and image"),
    ],
)
def test_errors_in_the_steps_are_found_early(tmp_path: Path, step: str, change: dict, message: str) -> None:
    content = yaml.safe_load((BUILT_IN / "steps.yaml").read_text())
    content[step] |= change
    with pytest.raises(TemplateError, match=message):
        Templates.load(_write(tmp_path / "own", "steps.yaml", content))


def test_unknown_families_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"unknown question families \['weather'\]; there are \['agent_behaviour'"):
        Templates.load(families=["weather"])
    with pytest.raises(TemplateError, match=r"holds no \*.yaml"):
        Templates.load(tmp_path)
