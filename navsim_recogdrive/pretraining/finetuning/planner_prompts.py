"""In which prompt profile a run's trajectory questions are written: the one that is saved with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from navsim_recogdrive.pretraining.finetuning.conversations import InvalidRecord, Record, read_record
from navsim_recogdrive.pretraining.finetuning.index import InvalidData
from navsim_recogdrive.pretraining.registry import Entry
from navsim_recogdrive.vlm.answers import parse_trajectory
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.prompts import PROFILE_FILE, PromptProfile

_LOOKED_AT = 20
"""Lines from a data set's start among which its first usable record is looked for."""


def choose_profile(name_or_path: str, entries: Mapping[str, Entry], checkpoint: Path) -> PromptProfile:
    """The prompt profile of a run.

    Args:
        name_or_path: as for :meth:`~navsim_recogdrive.vlm.prompts.PromptProfile.load`, or ``auto``: the one that the
            mixture's entries name; where none does, the base model's own (``prompt_profile.json``), else ``published``.
        entries: of the mixture.
        checkpoint: folder of the base model.

    Raises:
        InvalidData: for ``auto``, if entries name profiles that differ.
        PromptError: if a profile is unknown or malformed, or about other cameras than the entry says.
    """
    if name_or_path != "auto":
        return PromptProfile.load(name_or_path)
    found: dict[str, PromptProfile] = {}
    for name, entry in entries.items():
        if entry.prompt_profile:
            found[name] = PromptProfile.load(entry.prompt_profile)
            if entry.cameras:
                found[name].check_cameras(entry.cameras)
    if not found:
        own = checkpoint / PROFILE_FILE
        return PromptProfile.load(own if own.is_file() else "published")
    first, profile = next(iter(found.items()))
    if other := next((name for name, one in found.items() if one != profile), None):
        raise InvalidData(
            f"{first} and {other} are asked in different words (prompt_profile={entries[first].prompt_profile} and "
            f"{entries[other].prompt_profile}), but a planner asks in one way: generate one of them anew, train them "
            "apart, or name with --prompt-profile the one that the planner is to use and leave the other data set out"
        )
    return profile


def check_prompts(entries: Mapping[str, Entry], writer: ConversationWriter) -> None:
    """Make sure that trajectory questions are those that the planner will ask; looks at one of each data set.

    Data sets whose entry names a prompt profile are trajectory questions, and so is a single question with a system
    message whose answer is a trajectory.

    Raises:
        InvalidData: naming the line, and where the texts differ.
    """
    for name, entry in entries.items():
        line, record = next(_records(Path(entry.annotation)), (0, None))
        if record is None or not (entry.prompt_profile or _is_trajectory(record)):
            continue
        if difference := record.mismatch(writer):
            own = entry.prompt_profile or "PROFILE"
            raise InvalidData(
                f"{name}: {entry.annotation} line {line} asks for a trajectory in other words than the prompt profile "
                f"that would be saved with the weights, so a planner would ask what was never trained: {difference}. "
                f"Give the profile that the data was generated with (--prompt-profile {own}), or generate it anew"
            )


def _is_trajectory(record: Record) -> bool:
    return record.system is not None and len(record.turns) == 3 and parse_trajectory(record.answer).outcome == "exact"


def _records(annotation: Path) -> Iterator[tuple[int, Record]]:
    """Usable records among the first lines; none of a file that is not there, which is said elsewhere."""
    if not annotation.is_file():
        return
    with annotation.open("rb") as stream:
        for number, line in enumerate(islice(stream, _LOOKED_AT), start=1):
            try:
                yield number, read_record(line)
            except InvalidRecord:
                continue
