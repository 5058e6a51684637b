"""Writes docs/options.md from the YAML configs, their comments and the classes that read them.

    python docs/tools/write_options.py           writes the page
    python docs/tools/write_options.py --check   status 1 if the page is not what would be written

A description is the comment in the YAML file, else that of the class (its docstring's "Attributes" or "Args"), else the
comment on the option's group. The values that an option takes are the class's annotation. The package is not imported.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "options.md"
PACKAGE = REPOSITORY / "navsim_recogdrive"
CONFIGS = PACKAGE / "configs"

# Classes whose name does not follow from that of the group: agent.GROUP is read by GROUPConfig or GROUPSettings.
CLASSES_OF_GROUP = {
    "": ("PolicyConfig", "TextPolicyConfig", "ReCogDriveAgent", "ReCogDriveRLAgent"),
    "lora": ("LoRA",),
    "reward": ("PDMRewardSettings",),
}
NOT_OPTIONS = ("_target_", "_convert_", "defaults", "trajectory_sampling", "host", "hydra")
WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true, false", "None": "null"}

INTRODUCTION = """\
# All options

Written by `python docs/tools/write_options.py` from the configs, their comments and the classes that read them; a test
keeps it up to date. `agent=NAME` chooses a config and `agent.KEY=VALUE` sets an option, in every NAVSIM runner. Unknown
names, and values that cannot work, are refused at the start, with those that exist. What the environment decides for
the scripts is in their `--help`; the options of `python -m navsim_recogdrive...` commands are in theirs.
"""


@dataclass(frozen=True)
class Option:
    """One key of a YAML file: its dotted name, its value as written, its comment and that of the group it is in."""

    name: str
    value: str
    comment: str
    group_comment: str = ""


@dataclass(frozen=True)
class Field:
    """A class's setting: its annotation as written, and its description in Markdown."""

    annotation: str
    description: str


def about(path: Path) -> list[str]:
    """The lines of the comment at the top of a YAML file, which describes the file; indented ones are code."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return [f"`{line.lstrip('# ')}`" if line.startswith("#   ") else line.lstrip("# ") for line in lines]


def read_options(path: Path) -> list[Option]:
    """The options of a YAML file, in order.

    A comment belongs to the key that it stands behind, or to the one below it if no blank line is between.

    Raises:
        ValueError: if what was read is not what a YAML parser reads.
    """
    options: list[Option] = []
    above: list[str] = []
    parents: list[tuple[int, str, str]] = []
    for line in path.read_text().splitlines()[len(about(path)) :]:
        if line.strip().startswith("#"):
            above.append(line.strip("# "))
            continue
        key = re.match(r"^(\s*)([A-Za-z_]\w*):(?:\s+(.*))?$", line)
        if key is None:  # a blank line, or an entry of a list
            above = []
            continue
        value, _, behind = f" {key[3] or ''}".partition(" #")
        while parents and parents[-1][0] >= len(key[1]):
            parents.pop()
        name = ".".join([*(parent for _, parent, _ in parents), key[2]])
        comment = " ".join([*above, behind.strip()]).strip()
        around = next((text for *_, text in reversed(parents) if text), "")
        if value.strip():
            options.append(Option(name, value.strip(), comment, around))
        else:
            parents.append((len(key[1]), key[2], comment))
        above = []
    found = {option.name: yaml.safe_load(option.value) for option in options}
    wanted = _leaves({name: value for name, value in _load(path).items() if name != "defaults"})
    if found != wanted:
        raise ValueError(f"{path.name}: read {found}, a YAML parser reads {wanted}")
    return [option for option in options if option.name.split(".")[0] not in NOT_OPTIONS]


def _load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, dict) and value
        found.update(_leaves(value, f"{prefix}{name}.") if is_group else {prefix + name: value})
    return found


def read_classes() -> tuple[dict[str, dict[str, Field]], dict[str, str]]:
    """The package's classes by lower-case name, with their fields or arguments; and what names a ``Literal[...]``."""
    classes: dict[str, dict[str, Field]] = {}
    literals: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
                literals[ast.unparse(node.targets[0])] = ast.unparse(node.value)
            if isinstance(node, ast.ClassDef):
                described = _described(ast.get_docstring(node) or "")
                classes[node.name.lower()] = {
                    name: Field(annotation, described.get(name, "")) for name, annotation in _annotated(node)
                }
    return classes, literals


def _annotated(node: ast.ClassDef) -> Iterable[tuple[str, str]]:
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part.target.id, ast.unparse(part.annotation)
        elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
            for argument in part.args.args:
                if argument.annotation is not None:
                    yield argument.arg, ast.unparse(argument.annotation)


def _described(docstring: str) -> dict[str, str]:
    """The section "Attributes" or "Args" of a docstring: description by name, in Markdown."""
    section = re.search(r"^(?:Attributes|Args):\n(.*?)(?=^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else []:
        entry = re.match(r"^    (\w+): (.*)$", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {name: _markdown(text) for name, text in found.items()}


def _markdown(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    for python, hydra in (("None", "null"), ("True", "true"), ("False", "false")):
        text = text.replace(f"`{python}`", f"`{hydra}`")
    return text.removesuffix(".")


def values_of(annotation: str) -> str:
    """What an annotation admits, in words."""
    named = []
    for part in (part.strip() for part in annotation.split("|")):
        if part.startswith("Literal["):
            named.append(", ".join(map(str, ast.literal_eval(part.removeprefix("Literal")))))
        elif part.startswith(("tuple", "list")):
            named.append("list")
        elif part.startswith(("Mapping", "dict")):
            named.append("mapping")
        else:
            named.append(WORDS.get(part, part))
    return " or ".join(named)


class Tables:
    """Makes tables of options; knows the classes."""

    def __init__(self) -> None:
        self._classes, self._literals = read_classes()

    def _field(self, name: str) -> Field:
        """What the class of an option's group says of it; empty where none does."""
        group, _, key = name.rpartition(".")
        if not group and key in ("vlm_type", "cam_type"):  # they stand beside the group that they belong to
            group = "vlm"
        for candidate in CLASSES_OF_GROUP.get(group, (f"{group}Config", f"{group}Settings")):
            if key in self._classes.get(candidate.lower(), {}):
                return self._classes[candidate.lower()][key]
        return Field("", "")

    def full(self, options: list[Option], prefix: str = "agent.") -> str:
        """All that is known of options."""
        rows = []
        for option in options:
            known = self._field(option.name)
            values = values_of(self._literals.get(known.annotation, known.annotation))
            meaning = option.comment or known.description or option.group_comment
            rows.append((f"`{prefix}{option.name}`", f"`{option.value}`", values, meaning))
        return _table(("option", "default", "values", "meaning"), rows)


def changes(options: list[Option]) -> str:
    """Values that a config sets on top of another."""
    rows = [(f"`agent.{option.name}`", f"`{option.value}`", option.comment) for option in options]
    if any(option.comment for option in options):
        return _table(("option", "value", "meaning"), rows)
    return _table(("option", "value"), [row[:2] for row in rows])


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines)


def _base(path: Path) -> str | None:
    """The config that a config builds on."""
    named = [entry for entry in _load(path).get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    return named[0] if named else None


def _with_base(path: Path) -> set[str]:
    """Names of the options of a config and of those that it builds on, the planner's sizes left out."""
    base = _base(path)
    return {option.name for option in read_options(path)} | (
        set() if base is None else _with_base(path.with_name(f"{base}.yaml"))
    )


def write_page() -> str:
    """The page: every agent, the planner's sizes, workers, offline mode."""
    tables = Tables()
    sections = [INTRODUCTION.rstrip()]
    for path in sorted((CONFIGS / "agent").glob("*.yaml")):
        sections += [f"## agent={path.stem}", "\n".join(about(path))]
        options = read_options(path)
        base = _base(path)
        inherited = set() if base is None else _with_base(path.with_name(f"{base}.yaml"))
        own = [option for option in options if option.name not in inherited]
        changed = [option for option in options if option.name in inherited]
        if own:
            sections.append(tables.full(own))
        if changed:
            sections += [f"Where `agent={base}` has another value:", changes(changed)]
    planners = sorted((CONFIGS / "agent" / "planner").glob("*.yaml"), key=lambda path: (bool(_base(path)), path.stem))
    for path in planners:
        options = [Option(f"planner.{option.name}", option.value, option.comment) for option in read_options(path)]
        table = tables.full(options) if _base(path) is None else changes(options)
        sections += [f"## agent/planner={path.stem}", "\n".join(about(path)), table]
    for path in sorted(CONFIGS.glob("worker/*.yaml")):
        table = tables.full(read_options(path), prefix="worker.")
        sections += [f"## worker={path.stem}", "\n".join(about(path)), table]
    offline = CONFIGS / "offline.yaml"
    table = tables.full(read_options(offline), prefix="")
    sections += ["## Offline mode", "\n".join(about(offline)), table]
    return "\n\n".join(sections) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if the page is out of date")
    text = write_page()
    if not parser.parse_args(arguments).check:
        PAGE.write_text(text)
        return 0
    if not PAGE.is_file() or PAGE.read_text() != text:
        print("docs/options.md is out of date: run python docs/tools/write_options.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
