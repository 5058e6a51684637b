"""One question about one scene, from generation over refinement to the judge's word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from navsim_recogdrive.pretraining.facts import SceneFacts
from navsim_recogdrive.pretraining.images import BadImage
from navsim_recogdrive.pretraining.labelling.endpoint import Reply, RequestFailed, RequestRefused
from navsim_recogdrive.pretraining.labelling.images import ImageScaling
from navsim_recogdrive.pretraining.labelling.judging import fault, parse_score
from navsim_recogdrive.pretraining.labelling.request import Request, Step
from navsim_recogdrive.pretraining.labelling.templates import FilledFamily, Templates
from navsim_recogdrive.pretraining.labelling.wording import placeholders
from navsim_recogdrive.pretraining.records import SceneRecord

JUDGE_ASKED = 3
"""How often a judge is asked before an answer without a score counts as unjudged."""

Verdict = Literal["passed", "low score", "faulty", "unjudged", "refused", "failed", "bad image", "not asked"]
"""What became of a question. ``not asked``: its answer is not there yet."""

Ask = Callable[[Request], Awaitable[Reply]]
"""Gives the answer to a request, from wherever."""


class NotAnswered(LookupError):
    """The request has no answer yet, and is not to be asked now."""


@dataclass(frozen=True)
class Settings:
    """What decides the requests, besides templates and scenes.

    Attributes:
        model: answers and refines.
        judge_model: judges; another one than ``model`` judges more freely.
        threshold: lowest score that passes, 0..10.
        max_tokens: of an answer.
        temperature: of the generation; refinement and judge are asked at 0.
        scaling: of the images.
        extra: further fields of every request to ``model``.
        judge_extra: likewise to the judge.

    Raises:
        ValueError: for numbers out of range.
    """

    model: str
    judge_model: str
    threshold: float = 7.0
    max_tokens: int = 512
    temperature: float = 0.7
    scaling: ImageScaling = field(default_factory=ImageScaling)
    extra: Mapping[str, Any] = field(default_factory=dict)
    judge_extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 10.0:
            raise ValueError(f"the threshold must be within 0..10, found {self.threshold}")
        if self.max_tokens < 1 or not 0.0 <= self.temperature <= 2.0:
            raise ValueError(
                f"max_tokens must be at least 1 and the temperature within 0..2, found {self.max_tokens} and "
                f"{self.temperature}"
            )


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        scene: the record.
        family: the question's family.
        question: as a sample asks it.
        verdict: in a word.
        answer: the refined answer; empty if it did not come so far.
        score: the judge's; ``None`` if it did not come so far.
        detail: which fault, or what the server said.
    """

    scene: SceneRecord
    family: str
    question: str
    verdict: Verdict
    answer: str = ""
    score: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Labeller:
    """Puts questions about scenes; the same scene, templates and settings give the same requests."""

    templates: Templates
    settings: Settings

    def questions(self, scene: SceneRecord) -> Iterator[FilledFamily | None]:
        """The questions about a scene in the order of the families; ``None`` for one that does not apply to it."""
        values = placeholders(SceneFacts.of(scene))
        for family in self.templates.families.values():
            yield family.filled(scene.token, values)

    async def label(self, scene: SceneRecord, filled: FilledFamily, ask: Ask) -> Outcome:
        """Generate, refine and judge one answer.

        Args:
            scene: the record.
            filled: one of :meth:`questions`.
            ask: may raise :class:`RequestRefused`, :class:`RequestFailed`, :class:`BadImage` or :class:`NotAnswered`,
                which become a verdict; all else is passed on.
        """

        def outcome(verdict: Verdict, **more: Any) -> Outcome:
            return Outcome(scene, filled.family.name, filled.question, verdict, **more)

        try:
            draft = await ask(self.generation(scene, filled))
            # A cut or empty draft would be finished by the editor's own inventions.
            if not draft.finished or not draft.text:
                return outcome("faulty", detail="draft cut off" if draft.text else "draft empty")
            refined = await ask(self.refinement(scene, filled, draft.text))
            if wrong := fault(refined, filled, self.templates.forbidden):
                return outcome("faulty", answer=refined.text, detail=wrong)
            for number in range(JUDGE_ASKED):
                score = parse_score((await ask(self.judging(scene, filled, refined.text, number))).text)
                if score is not None:
                    verdict: Verdict = "passed" if score >= self.settings.threshold else "low score"
                    return outcome(verdict, answer=refined.text, score=score)
            return outcome("unjudged", answer=refined.text)
        except RequestRefused as error:
            return outcome("refused", detail=str(error))
        except RequestFailed as error:
            return outcome("failed", detail=str(error))
        except BadImage as error:
            return outcome("bad image", detail=str(error))
        except NotAnswered:
            return outcome("not asked")

    def generation(self, scene: SceneRecord, filled: FilledFamily) -> Request:
        """The request for a draft."""
        return self._request("generation", scene, filled, {"guidance": filled.guidance})

    def refinement(self, scene: SceneRecord, filled: FilledFamily, draft: str) -> Request:
        """The request for a better answer."""
        return self._request("refinement", scene, filled, {"guidance": filled.guidance, "draft": draft})

    def judging(self, scene: SceneRecord, filled: FilledFamily, answer: str, number: int = 0) -> Request:
        """The request for a score; after the first it reminds of the form."""
        reminders = "".join(f"\n\n{self.templates.reminder}" for _ in range(number))
        return self._request("judging", scene, filled, {"criteria": filled.criteria, "answer": answer}, reminders)

    def _request(
        self, step: Step, scene: SceneRecord, filled: FilledFamily, values: Mapping[str, str], end: str = ""
    ) -> Request:
        template, settings = self.templates.steps[step], self.settings
        judging = step == "judging"
        return Request(
            step=step,
            scene=scene.token,
            family=filled.family.name,
            model=settings.judge_model if judging else settings.model,
            system=template.system,
            user=template.user.format(question=filled.question, facts=filled.facts, **values).strip() + end,
            image=scene.image if template.image else None,
            scaling=settings.scaling,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature if step == "generation" else 0.0,
            extra=settings.judge_extra if judging else settings.extra,
        )
