"""Mixtures of question-answer data sets, in the layout of InternVL's meta files.

A mixture is a JSON file ``{name: {"root", "annotation", "data_augment", "repeat_time", "length"}}``; InternVL's own
scripts read it too. Beside these five an entry may say where the data comes from and what may be done with it
(``licence``, ``homepage``, ``note``), and how its trajectory questions are asked (``prompt_profile``, ``cameras``).
Paths that are not absolute count from the folder of the mixture file, and ``$VARIABLES`` in them are filled in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from navsim_recogdrive.vlm.prompts import builtin_profiles

UNKNOWN = "unknown"
"""Licence of a data set whose authors state none that we know of."""


class InvalidMixture(ValueError):
    """A mixture file that is none: names the data set, the field, what was found and what belongs there."""


@dataclass(frozen=True)
class Entry:
    """One data set of a mixture.

    Attributes:
        root: folder that paths of images are relative to.
        annotation: JSONL file, one sample per line in InternVL's format.
        data_augment: compress its images as JPEGs of random quality while training.
        repeat_time: how often it is gone through per epoch; a fraction takes a part of it.
        length: number of samples; ``None`` where it is not known yet.
        licence: of questions and answers, and of the images where it is another; ``unknown`` where none is stated.
        homepage: where it comes from.
        note: whatever else one must know.
        prompt_profile: of trajectory questions: the name of a built-in prompt profile, or the path of a profile's file;
            empty for other questions.
        cameras: of trajectory questions: whose images they show, from left to right, by their names in
            :data:`~navsim_recogdrive.observation.CAMERA_SETS`.
    """

    root: str
    annotation: str
    data_augment: bool = False
    repeat_time: float = 1
    length: int | None = None
    licence: str = UNKNOWN
    homepage: str = ""
    note: str = ""
    prompt_profile: str = ""
    cameras: tuple[str, ...] = ()


def builtin_mixtures() -> list[str]:
    """Names of the mixtures that come with this package."""
    folder = resources.files("navsim_recogdrive.pretraining") / "mixtures"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def navsim_entry(name: str, root: Path, annotation: Path, length: int, **more: Any) -> Entry:
    """The entry of a data set that was made of NAVSIM's logs.

    Args:
        name: ``navsim_traj`` or ``navsim_recogdrive``: whose licence and homepage the built-in mixture gives.
        root: folder that paths of images are relative to.
        annotation: the JSONL file.
        length: number of samples.
        more: further fields.
    """
    known = load_mixture("recogdrive", root)[name]
    said = {"licence": known.licence, "homepage": known.homepage, **more}
    return Entry(str(root.absolute()), str(annotation.absolute()), length=length, **said)


def load_mixture(name_or_path: str | Path, data_root: Path | None = None) -> dict[str, Entry]:
    """Read a mixture; its paths become absolute.

    Args:
        name_or_path: one of :func:`builtin_mixtures`, or the path of a JSON file.
        data_root: what relative paths count from; needed for a built-in mixture, else the file's folder.

    Raises:
        InvalidMixture: if there is no such mixture, it is malformed, or a variable in a path is not set.
    """
    if str(name_or_path) in builtin_mixtures():
        if data_root is None:
            raise InvalidMixture(f"the built-in mixture {name_or_path!s} needs the folder of the data (--data-root)")
        text = (resources.files("navsim_recogdrive.pretraining") / "mixtures" / f"{name_or_path}.json").read_text(
            "utf-8"
        )
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
        data_root = data_root or Path(name_or_path).parent
    else:
        raise InvalidMixture(
            f"no mixture {str(name_or_path)!r}: give a JSON file, or one of the built-in {builtin_mixtures()}"
        )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InvalidMixture(f"mixture {name_or_path!s} is no JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise InvalidMixture(f"mixture {name_or_path!s} must be a JSON object with one entry for each data set")
    entries = {}
    for name, entry in content.items():
        try:
            entries[name] = _with_absolute_paths(_entry(entry), data_root)
        except InvalidMixture as error:
            raise InvalidMixture(f"mixture {name_or_path!s}, data set {name!r}: {error}") from None
    return entries


def write_mixture(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write a mixture file; fields without content are left out, but for InternVL's five."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(mixture_content(entries), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def mixture_content(entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """A mixture as JSON has it."""
    return {
        name: {
            field: list(value) if isinstance(value, tuple) else value
            for field, value in asdict(entry).items()
            if value not in ("", ())
        }
        for name, entry in entries.items()
    }


def _entry(content: Any) -> Entry:
    if not isinstance(content, dict):
        raise InvalidMixture(f"must be an object, found {content!r:.60}")
    # InternVL's own files have further settings, max_dynamic_patch for one; this package does not read them.
    known = {field.name for field in fields(Entry)}
    values = {name: value for name, value in content.items() if name in known}
    for name in ("root", "annotation"):
        if not isinstance(values.get(name), str) or not values[name]:
            raise InvalidMixture(f"{name} must be a path, found {values.get(name)!r}")
    repeat, length = values.get("repeat_time", 1), values.get("length")
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat < float("inf"):
        raise InvalidMixture(f"repeat_time must be a number above 0, found {repeat!r}")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 0):
        raise InvalidMixture(f"length must be a whole number of samples, or null, found {length!r}")
    if not isinstance(values.get("data_augment", False), bool):
        raise InvalidMixture(f"data_augment must be true or false, found {values['data_augment']!r}")
    for name in ("licence", "homepage", "note", "prompt_profile"):
        if not isinstance(values.get(name, ""), str):
            raise InvalidMixture(f"{name} must be a text, found {values[name]!r}")
    cameras = values.get("cameras", [])
    if not isinstance(cameras, list) or not all(isinstance(camera, str) and camera for camera in cameras):
        raise InvalidMixture(f"cameras must be a list of names, found {cameras!r:.60}")
    return Entry(**{**values, "cameras": tuple(cameras)})


def _with_absolute_paths(entry: Entry, folder: Path) -> Entry:
    profile = entry.prompt_profile
    return replace(
        entry,
        root=_absolute(entry.root, folder),
        annotation=_absolute(entry.annotation, folder),
        prompt_profile=profile if profile in ("", *builtin_profiles()) else _absolute(profile, folder),
    )


def _absolute(path: str, folder: Path) -> str:
    filled = os.path.expanduser(os.path.expandvars(path))
    if "$" in filled:
        raise InvalidMixture(f"a variable in the path {path!r} is not set")
    return str((folder / filled).absolute())  # links are not followed: a folder of images may be one
