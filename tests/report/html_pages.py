"""A report of made-up runs with hostile names, and what a parser reads of a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image
from score_files import write_v1

from navsim_recogdrive.report.__main__ import main

HOSTILE = "<b>&\"'"
VOID = {"meta", "img", "input", "br", "hr"}
SCENES = 130


def scores(run: int) -> dict[str, dict[str, float] | None]:
    """130 scenes; those of the second run are better, worse or equal in turns."""
    values: dict[str, dict[str, float] | None] = {}
    for index in range(SCENES):
        score = round(0.2 + 0.005 * index + run * (0.05, -0.05, 0.0)[index % 3], 6)
        values[f"t{index:03d}"] = {"score": score, "EP": score, "NC": float(index % 10 != 0)}
    values["t128"] = {"score": 0.0, "NC": 0.0, "TTC": 0.0, "DAC": 0.0, "EP": 0.0}
    if run:
        values["t006"] = values["t129"] = None
    return values


def write_report(folder: Path, *options: str) -> Path:
    """The page of two runs with facts, trajectories of two scenes and a picture of one of them."""
    one, two = write_v1(folder / "one.csv", scores(0)), write_v1(folder / "two.csv", scores(1))
    facts = ["token,log_name,command,speed"]
    facts += [f"t{i:03d},</script><log {i % 8},{('left', 'right')[i % 2]},{i / 10}" for i in range(SCENES)]
    (folder / "facts.csv").write_text("\n".join(facts) + "\n")
    (folder / "pictures").mkdir()
    Image.new("RGB", (8, 4), "blue").save(folder / "pictures" / "t128.png")
    notes = {"caption": "<i>A & B</i>", "trajectories": {"human": [[2, 0], [4, 0.5]], "one": [[2, 0], [4, -1]]}}
    for token in ("t128", "t000"):
        (folder / "pictures" / f"{token}.json").write_text(json.dumps(notes))
    output = folder / "report.html"
    status = main(
        [
            f"one={one}", f"{HOSTILE}={two}", "--output", str(output), "--scene-facts", str(folder / "facts.csv"),
            "--pictures", str(folder / "pictures"), "--title", f"Title {HOSTILE}", "--replicates", "200", *options,
        ]
    )  # fmt: skip
    assert status == 0
    return output


class Page(HTMLParser):
    """Checks that elements are closed in order; collects their names, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.data: dict[str, Any] = {}
        self._json = False
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        self._json = tag == "script" and dict(attrs).get("type") == "application/json"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self._json:
            self.data = json.loads(data)
        elif self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def having(self, attribute: str) -> list[str]:
        """All values of an attribute."""
        return [str(attributes[attribute]) for _, attributes in self.elements if attribute in attributes]
