"""What a run did: questions by family and verdict, requests, tokens, rate and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from navsim_recogdrive.pretraining.labelling.answer_log import Usage
from navsim_recogdrive.pretraining.labelling.labeller import Outcome

SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency.

    Attributes:
        tokens_in: of requests.
        tokens_out: of answers.
    """

    tokens_in: float = 0.0
    tokens_out: float = 0.0

    def of(self, usage: Usage) -> float:
        """What requests cost."""
        return (usage.tokens_in * self.tokens_in + usage.tokens_out * self.tokens_out) / 1e6


@dataclass
class FamilyTally:
    """Counts of one family.

    Attributes:
        verdicts: questions by verdict.
        not_applicable: scenes that it does not apply to.
        scores: judged answers by score, rounded down.
        faults: faulty answers by fault.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    not_applicable: int = 0
    scores: Counter[int] = field(default_factory=Counter)
    score_sum: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def mean_score(self) -> float | None:
        """Of the judged answers."""
        judged = self.scores.total()
        return self.score_sum / judged if judged else None


@dataclass
class Tally:
    """Counts of many outcomes.

    Attributes:
        families: by name.
        scenes: how many were gone through.
        examples: of what went wrong, by verdict, the first few.
    """

    families: dict[str, FamilyTally] = field(default_factory=dict)
    scenes: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        family = self.families.setdefault(outcome.family, FamilyTally())
        family.verdicts[outcome.verdict] += 1
        if outcome.score is not None:
            family.scores[int(outcome.score)] += 1
            family.score_sum += outcome.score
        if outcome.verdict == "faulty":
            family.faults[outcome.detail] += 1
        elif outcome.detail:
            shown = self.examples.setdefault(outcome.verdict, [])
            if len(shown) < SHOWN_EXAMPLES:
                shown.append(f"{outcome.scene.token} {outcome.family}: {outcome.detail}")

    def skip(self, family: str) -> None:
        """Count a scene that a family does not apply to."""
        self.families.setdefault(family, FamilyTally()).not_applicable += 1

    @property
    def unanswered(self) -> int:
        """Questions whose requests failed; the next run asks them again."""
        return sum(
            family.verdicts[verdict]
            for family in self.families.values()
            for verdict in ("refused", "failed", "bad image", "not asked")
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "scenes": self.scenes,
            "families": {
                name: {
                    "verdicts": dict(sorted(family.verdicts.items())),
                    "not_applicable": family.not_applicable,
                    "mean_score": None if family.mean_score is None else round(family.mean_score, 3),
                    "scores": {str(score): family.scores[score] for score in sorted(family.scores)},
                    "faults": dict(sorted(family.faults.items())),
                }
                for name, family in sorted(self.families.items())
            },
        }

    def text(self) -> str:
        """A table for people, one line per family, and the faults."""
        columns = ("passed", "low score", "faulty", "unjudged", "refused", "failed", "bad image", "not asked")
        shown = [
            name
            for name in columns
            if name in columns[:3] or any(family.verdicts[name] for family in self.families.values())
        ]
        width = max([len(name) for name in self.families] + [len("all")])
        lines = [f"{'':{width}}  " + "  ".join(f"{name:>9}" for name in (*shown, "no case", "score"))]
        total = FamilyTally()
        for name, family in sorted(self.families.items()):
            lines.append(_row(name, width, family, shown))
            total.verdicts += family.verdicts
            total.not_applicable += family.not_applicable
            total.scores += family.scores
            total.score_sum += family.score_sum
            total.faults += family.faults
        lines.append(_row("all", width, total, shown))
        if total.faults:
            lines.append("faults: " + ", ".join(f"{count} {name}" for name, count in total.faults.most_common()))
        return "\n".join(lines)

    def troubles(self) -> list[str]:
        """What kept questions from being answered, with a few examples; a line each."""
        lines = []
        for verdict, examples in self.examples.items():
            count = sum(family.verdicts[verdict] for family in self.families.values())
            lines += [f"{count} {verdict}:", *(f"  {example}" for example in examples)]
            if count > len(examples):
                lines.append("  ...")
        return lines


def _row(name: str, width: int, family: FamilyTally, shown: list[str]) -> str:
    counts = "  ".join(f"{family.verdicts[verdict]:>9}" for verdict in shown)
    score = "-" if family.mean_score is None else f"{family.mean_score:.2f}"
    return f"{name:{width}}  {counts}  {family.not_applicable:>9}  {score:>9}"


def usage_text(usage: Mapping[str, Usage], prices: Mapping[str, Price], seconds: float | None = None) -> list[str]:
    """Requests, tokens, cost and, for a run of ``seconds``, the rate; a line per model."""
    lines = []
    for model, used in sorted(usage.items()):
        text = f"{model}: {used.requests} requests, {used.tokens_in} tokens in, {used.tokens_out} out"
        if used.uncounted:
            text += f" ({used.uncounted} requests without a count)"
        price = prices.get(model, Price())
        if price != Price():
            text += f", cost {price.of(used):.2f}"
        if seconds:
            text += f"; {used.requests / seconds:.2f} requests/s, {used.tokens_out / seconds:.0f} tokens out/s"
        lines.append(text)
    return lines
