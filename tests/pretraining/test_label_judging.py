"""Quality control: rules and scores."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_recogdrive.pretraining.labelling.endpoint import Reply
from navsim_recogdrive.pretraining.labelling.judging import fault, parse_score
from navsim_recogdrive.pretraining.labelling.templates import Family, FilledFamily

BOX, OTHER, ASKED = "[[1, 2, 3, 4]]", "[[5, 6, 7, 8]]", "[[9, 10, 11, 12]]"


def _filled(boxes: str) -> FilledFamily:
    family = Family("one", ("q",), "f", "g", "c", boxes)
    return FilledFamily(family, f"What of <box>{ASKED}</box>?", f"<box>{BOX}</box> and <box>{OTHER}</box>", "g", "c")


@pytest.mark.parametrize(
    ("text", "boxes", "expected"),
    [
        ("A car.", "known", None),
        (f"A car at <box>{BOX}</box>.", "known", None),
        ("A car at <box>[[1,2,3,4]]</box>.", "known", None),
        (f"A car at <box>{ASKED}</box>.", "known", None),
        ("A car at <box>[[1, 2, 3, 5]]</box>.", "known", "invented box"),
        ("A car at [[1, 2, 3, 5]].", "known", "invented box"),
        ("A car at <box>1, 2, 3, 4</box>.", "known", "malformed box"),
        (f"Cars at <box>{BOX} {OTHER}</box>.", "known", "malformed box"),
        (f"<box>{BOX}</box> <box>{OTHER}</box>", "all", None),
        (f"<box>{BOX}</box>", "all", "box left out"),
        ("none", "all", "box left out"),
        ("", "known", "empty"),
        ("As the Given Facts say, a car.", "known", "speaks of the facts"),
        (f"A <ref>car</ref> at <box>{BOX}</box>, <quad>wide</quad>.", "known", None),
        ("As <image> shows, a car.", "known", "special token"),
        ("A car.<|im_end|>", "known", "special token"),
        ("A car <IMG_CONTEXT>", "known", "special token"),
    ],
)
def test_rules(text: str, boxes: str, expected: str | None) -> None:
    assert fault(Reply(text, True, 1, 1), _filled(boxes), ("given facts",)) == expected


def test_an_answer_that_is_cut_off_is_faulty() -> None:
    assert fault(Reply("A car", False, 1, 1), _filled("known"), ()) == "cut off"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reason": "right", "score": 8}', 8.0),
        ('```json\n{"score": 7.5, "reason": "fine"}\n```', 7.5),
        ('{"score": "9"}', 9.0),
        ("Score: 6", 6.0),
        ("**Score**: 6/10", 6.0),
        ("score 8", 8.0),
        ('{"reason": "a "quoted" word", "score": 4}', 4.0),
        ("My first score: 3. On reflection, score: 5", 5.0),
        ('{"score": 0}', 0.0),
        ('{"score": 10}', 10.0),
        ('{"score": 11}', None),
        ('{"score": -1}', None),
        ("score: -3", None),
        ("score: 95", None),
        ('{"score": true}', None),
        ('{"score": null}', None),
        ('{"score": NaN}', None),
        ('{"score": 1e999}', None),
        ('{"reason": "8"}', None),
        ("8", None),
        ("highscore 8", None),
        ("", None),
    ],
)
def test_scores(text: str, score: float | None) -> None:
    assert parse_score(text) == score


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text(alphabet='{}[]":scoreSCORE0123456789.-+eE \n'))
def test_any_text_has_a_score_within_the_scale_or_none(text: str) -> None:
    score = parse_score(text)
    assert score is None or 0.0 <= score <= 10.0


def test_deeply_nested_answers_do_no_harm() -> None:
    assert parse_score('{"score": ' + "[" * 100_000 + "}") is None
