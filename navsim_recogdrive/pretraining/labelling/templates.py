"""Question templates: read, checked, filled in."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from navsim_recogdrive.pretraining.labelling.endpoint import LabellingError
from navsim_recogdrive.pretraining.labelling.request import STEPS, Step
from navsim_recogdrive.pretraining.labelling.wording import PLACEHOLDERS
from navsim_recogdrive.pretraining.template_tokens import reserved_token
from navsim_recogdrive.vlm.conversation import IMAGE_MARK

BUILT_IN = Path(__file__).parent / "questions"
"""Folder of the templates that come with the package."""

STEPS_FILE = "steps.yaml"

_STEP_PLACEHOLDERS: dict[Step, tuple[str, ...]] = {
    "generation": ("question", "facts", "guidance"),
    "refinement": ("question", "facts", "guidance", "draft"),
    "judging": ("question", "facts", "criteria", "answer"),
}
_BOXES = ("all", "known")


class TemplateError(LabellingError):
    """A template that cannot be used."""


@dataclass(frozen=True)
class Family:
    """The template of one kind of question.

    Attributes:
        name: of its file.
        questions: ways to ask; a scene gets one of them, always the same.
        facts: what is known, for the steps.
        guidance: what a good answer holds.
        criteria: what the judge looks for.
        boxes: ``all``: an answer must hold every box of the facts; ``known``: only boxes of the facts or the question.
    """

    name: str
    questions: tuple[str, ...]
    facts: str
    guidance: str
    criteria: str
    boxes: str

    def filled(self, token: str, values: Mapping[str, str | None]) -> FilledFamily | None:
        """The template for one scene; ``None`` if the scene has no value for a placeholder that it uses.

        Args:
            token: the scene's; it chooses the question.
            values: of the placeholders.
        """
        draw = hashlib.sha256(f"{self.name} {token}".encode()).digest()
        question = self.questions[int.from_bytes(draw[:8], "big") % len(self.questions)]
        texts = (question, self.facts, self.guidance, self.criteria)
        if any(values[name] is None for text in texts for name in _names(text)):
            return None
        return FilledFamily(self, *(text.format_map(values).strip() for text in texts))


@dataclass(frozen=True)
class FilledFamily:
    """A family's texts for one scene; see :class:`Family`."""

    family: Family
    question: str
    facts: str
    guidance: str
    criteria: str


@dataclass(frozen=True)
class StepTemplate:
    """How one step is asked: the system turn, the user turn, and whether the image is shown."""

    system: str
    user: str
    image: bool


@dataclass(frozen=True)
class Templates:
    """All templates.

    Attributes:
        families: by name, in alphabetical order.
        steps: how the three steps are asked.
        reminder: what is added when a judge's answer held no score.
        forbidden: words that an answer must not hold, in lower case: they speak of the facts that it was given.
    """

    families: dict[str, Family]
    steps: dict[Step, StepTemplate]
    reminder: str
    forbidden: tuple[str, ...]

    @staticmethod
    def load(folder: Path | None = None, families: Sequence[str] | None = None) -> Templates:
        """The built-in templates, those of ``folder`` in place of built-in ones of the same name, and further ones.

        Args:
            folder: of the user's files; ``None`` for none.
            families: which to keep; ``None`` keeps all.

        Raises:
            TemplateError: for a file that is no template, a placeholder that does not exist, or an unknown family.
        """
        files = {file.name: file for file in sorted(BUILT_IN.glob("*.yaml"))}
        if folder is not None:
            own = {file.name: file for file in sorted(folder.glob("*.yaml"))} if folder.is_dir() else {}
            if not own:
                raise TemplateError(f"{folder} holds no *.yaml: copy the built-in templates there with `templates`")
            files |= own
        steps, reminder, forbidden = _read_steps(files.pop(STEPS_FILE))
        chosen = sorted(file.removesuffix(".yaml") for file in files)
        if families is not None:
            if unknown := sorted(set(families) - set(chosen)):
                raise TemplateError(f"unknown question families {unknown}; there are {chosen}")
            chosen = sorted(set(families))
        return Templates({name: _read_family(files[f"{name}.yaml"]) for name in chosen}, steps, reminder, forbidden)


def copy_built_in(folder: Path) -> list[Path]:
    """Copy the built-in templates to a folder, to be edited; files that are there already are left alone.

    Returns:
        The files that were made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for file in sorted(BUILT_IN.glob("*.yaml")):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
            made.append(folder / file.name)
    return made


def _read_family(file: Path) -> Family:
    content = _read(file, {"questions", "facts", "guidance", "criteria"}, {"boxes"})
    questions = content["questions"]
    if not isinstance(questions, list) or not questions or not all(isinstance(one, str) and one for one in questions):
        raise TemplateError(f"{file}: questions must be a list of texts, found {questions!r}")
    boxes = content.get("boxes", "known")
    if boxes not in _BOXES:
        raise TemplateError(f"{file}: boxes must be one of {_BOXES}, found {boxes!r}")
    for number, question in enumerate(questions, 1):
        _check(file, f"question {number}", question, PLACEHOLDERS)
        if token := IMAGE_MARK if IMAGE_MARK in question else reserved_token(question):
            raise TemplateError(f"{file}: question {number} holds {token}, which no sample may; images are added to it")
    texts = {name: _text(file, name, content[name]) for name in ("facts", "guidance", "criteria")}
    for name, text in texts.items():
        _check(file, name, text, PLACEHOLDERS)
    return Family(name=file.stem, questions=tuple(questions), boxes=boxes, **texts)


def _read_steps(file: Path) -> tuple[dict[Step, StepTemplate], str, tuple[str, ...]]:
    content = _read(file, {*STEPS, "reminder", "forbidden"}, set())
    steps: dict[Step, StepTemplate] = {}
    for step in STEPS:
        part = content[step]
        if not isinstance(part, dict) or set(part) != {"system", "user", "image"}:
            raise TemplateError(f"{file}: {step} must have system, user and image, found {part!r}")
        if not isinstance(part["image"], bool):
            raise TemplateError(f"{file}: {step}: image must be true or false, found {part['image']!r}")
        system, user = (_text(file, f"{step}: {name}", part[name]) for name in ("system", "user"))
        _check(file, f"{step}: system", system, ())
        _check(file, f"{step}: user", user, _STEP_PLACEHOLDERS[step])
        if missing := sorted({"question", *(_STEP_PLACEHOLDERS[step][3:])} - set(_names(user))):
            raise TemplateError(f"{file}: {step}: user must hold {{{missing[0]}}}, or nobody knows what is asked")
        steps[step] = StepTemplate(system.format().strip(), user, part["image"])
    forbidden = content["forbidden"]
    if not isinstance(forbidden, list) or not all(isinstance(word, str) and word for word in forbidden):
        raise TemplateError(f"{file}: forbidden must be a list of words, found {forbidden!r}")
    reminder = _text(file, "reminder", content["reminder"])
    _check(file, "reminder", reminder, ())
    return steps, reminder.format().strip(), tuple(word.lower() for word in forbidden)


def _read(file: Path, required: set[str], optional: set[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TemplateError(f"{file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise TemplateError(f"{file} must hold a mapping with {sorted(required)}")
    if missing := sorted(required - set(content)):
        raise TemplateError(f"{file}: missing {missing}")
    if unknown := sorted(set(content) - required - optional, key=str):
        raise TemplateError(f"{file}: unknown {unknown}; a file of this kind has {sorted(required | optional)}")
    return content


def _text(file: Path, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TemplateError(f"{file}: {name} must be a text, found {value!r}")
    return value


def _check(file: Path, where: str, text: str, known: Collection[str]) -> None:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise TemplateError(f"{file}: {where}: {error}; a brace that is meant is written twice") from None
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in known:
            raise TemplateError(
                f"{file}: {where}: there is no placeholder {{{name}}}; known here: {sorted(known)}. A brace that is "
                "meant is written twice"
            )
        if spec or conversion:
            raise TemplateError(f"{file}: {where}: {{{name}}} is text and takes no format")


def _names(text: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]
