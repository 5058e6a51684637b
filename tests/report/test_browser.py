"""The page in a real browser: filters, sorting, pages, details and saving, all through buttons and form fields."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_pages import HOSTILE, Page, scores, write_report
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIMIT_S = 120

# Runs in the page, after its own script: acts as a user, and leaves what it saw in the document.
DRIVER = """
<script>
(async () => {
  const seen = {errors: []};
  addEventListener("error", (event) => seen.errors.push(event.message));
  addEventListener("securitypolicyviolation", (event) => seen.errors.push(event.violatedDirective));
  const at = (id) => document.getElementById(id);
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const column = (key) => [...document.querySelectorAll("#scene-head button")].findIndex((b) => b.dataset.sort === key);
  const column_texts = (key) => [...document.querySelectorAll("#scene-rows > tr:not(.details)")].map(
    (row) => row.children[column(key)].textContent);
  const look = (key = "token") => ({count: at("scene-count").textContent, page: at("page-now").textContent,
    first: column_texts(key).slice(0, 3), rows: column_texts(key).length,
    sorted: [...document.querySelectorAll("#scene-head [aria-sort]")].map(
      (head) => [head.firstChild.dataset.sort, head.getAttribute("aria-sort")])});
  const set = async (key, value) => {
    at(`filter-${key}`).value = value;
    at(`filter-${key}`).dispatchEvent(new Event(key === "text" ? "input" : "change"));
    await wait(200);
  };
  const sort = (key) => document.querySelector(`[data-sort="${key}"]`).click();
  try {
    seen.start = look();
    sort("score-0"); seen.up = look("score-0");
    document.querySelector('[data-sort="score-0"]').focus();
    sort("score-0"); seen.down = look("score-0"); seen.focus = document.activeElement.dataset.sort;
    sort("score-0"); seen.back = look();
    at("page-after").click(); at("page-after").click(); seen.last = look(); seen.end = at("page-after").disabled;
    await set("command", "left"); seen.left = look("command");
    await set("failure", "collision"); seen.collisions = look();
    at("filter-reset").click(); seen.reset = look();
    await set("text", "LOG 3"); seen.log = look("log");
    await set("text", "t12"); seen.text = look();
    at("filter-reset").click();
    await set("run", "1"); await set("change", "worse"); seen.worse = look("change");
    sort("change"); seen.worst = look("change");
    await set("change", ""); await set("failure", "unscored"); seen.unscored = look("score-1");
    await set("failure", "none"); seen.clean = look();
    await set("text", "nothing like it"); seen.none = at("scene-rows").textContent;
    at("filter-reset").click(); seen.again = look();
    sort("score-1"); sort("score-1"); seen.unknown_last = look("score-1");
    at("page-after").click(); at("page-after").click();
    seen.tail = column_texts("score-1").slice(-3);
    await set("text", "t128");
    document.querySelector("[data-scene]").click();
    const opened = document.querySelector("#scene-rows .details");
    seen.details = {text: opened.textContent, pictures: opened.querySelectorAll("img").length,
      paths: opened.querySelectorAll("svg.bird-eye").length,
      expanded: document.querySelector("[data-scene]").getAttribute("aria-expanded")};
    const large = at("large");
    opened.querySelector(".picture").click();
    seen.large = [large.open, large.querySelector("img").src === opened.querySelector("img").src];
    large.querySelector("button").click();
    seen.large.push(large.open);
    document.querySelector("[data-scene]").click();
    await set("text", "t000");
    document.querySelector("[data-scene]").click();
    const plain = document.querySelector("#scene-rows .details");
    seen.plain = [plain.querySelectorAll("img").length, plain.querySelectorAll("svg.bird-eye").length];
    // What is low: the collision, not the progress that NAVSIM lowered for it.
    seen.low = [...document.querySelectorAll("#scene-rows > tr:not(.details) .low")].map(
      (cell) => document.querySelectorAll("#scene-head button")[cell.cellIndex].textContent);
    document.querySelector("[data-scene]").click();
    seen.closed = document.querySelectorAll("#scene-rows .details").length;
    at("filter-reset").click();
    await set("command", "right"); await set("text", "t00");
    // Reading a real Blob back takes time that a browser without a window does not wait for.
    window.Blob = class { constructor(parts) { seen.saved = parts.join(""); } };
    URL.createObjectURL = () => "#";
    at("save").click();
    document.body.style.width = "360px";
    seen.names = [...document.querySelectorAll("#scores tbody th[scope=row]")].map((head) => {
      head.lastChild.textContent = "human";
      const range = document.createRange();
      range.selectNodeContents(head.lastChild);
      const [text, mark] = [range.getClientRects(), head.querySelector(".key").getBoundingClientRect()];
      return {lines: text.length, beside: text[0].left >= mark.right && text[0].top < mark.top};
    });
    document.body.style.width = "";
    seen.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  } catch (error) { seen.errors.push(String(error)); }
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
})();
</script>
"""


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a page, ``report.html``; the browser's files are beside it."""
    folder = tmp_path_factory.mktemp("browser")
    if find_browser() is None:
        pytest.skip(f"no browser is installed ({', '.join(BROWSERS)})")
    write_report(folder)
    return folder


def browse(folder: Path, page: Path, *options: str) -> str:
    """What the browser prints of a page."""
    browser = str(find_browser())
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{browser} gave nothing in {LIMIT_S} s on this machine")
    if done.returncode:
        pytest.skip(f"{browser} cannot run here: {done.stderr.strip()[-300:]}")
    return done.stdout


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    driven = folder / "driven.html"
    text = (folder / "report.html").read_text()
    driven.write_text(text.replace("</body>", f"{DRIVER}</body>"))
    dom = browse(folder, driven, "--window-size=400,800", "--virtual-time-budget=20000", "--dump-dom")
    found: dict[str, Any] = json.loads(page_of(dom))
    assert found["errors"] == []
    return found


def page_of(dom: str) -> str:
    """What the driver left in the document."""
    page = Page(dom)
    assert "pre" in page.texts, "the script of the page did not come to its end"
    return "".join(page.texts["pre"])


def test_sorting(seen: dict[str, Any]) -> None:
    assert seen["start"] == {
        "count": "130 of 130 scenes",
        "page": "page 1 of 3",
        "first": ["t000", "t001", "t002"],
        "rows": 50,
        "sorted": [],
    }
    assert seen["up"]["first"] == ["0.000", "0.200", "0.205"]
    assert seen["up"]["sorted"] == [["score-0", "ascending"]]
    assert seen["down"]["first"] == ["0.845", "0.835", "0.830"]
    assert seen["down"]["sorted"] == [["score-0", "descending"]]
    assert seen["focus"] == "score-0", "the keyboard's place is lost"
    assert seen["back"] == seen["start"]
    assert seen["unknown_last"]["first"][0] == "0.880"
    assert seen["tail"] == ["0.000", "–", "–"]  # what is not known comes last, even from the highest down


def test_pages(seen: dict[str, Any]) -> None:
    assert (seen["last"]["page"], seen["last"]["rows"], seen["end"]) == ("page 3 of 3", 30, True)


def test_filters(seen: dict[str, Any]) -> None:
    assert seen["left"]["count"] == "65 of 130 scenes"
    assert seen["left"]["page"] == "page 1 of 2"
    assert set(seen["left"]["first"]) == {"left"}
    assert (seen["collisions"]["count"], seen["collisions"]["first"]) == ("14 of 130 scenes", ["t000", "t010", "t020"])
    assert seen["reset"] == seen["again"] == seen["start"]
    assert (seen["log"]["count"], seen["log"]["first"][0]) == ("16 of 130 scenes", "</script><log 3")
    assert (seen["text"]["count"], seen["text"]["first"][0]) == ("10 of 130 scenes", "t120")
    assert "No scene matches these filters." in seen["none"]


def test_comparison(seen: dict[str, Any]) -> None:
    assert seen["worse"]["count"] == "43 of 130 scenes"  # t001, t004, ..., t127
    assert set(seen["worse"]["first"]) == {"-0.050"}
    assert seen["worst"]["sorted"] == [["change", "ascending"]]
    assert (seen["unscored"]["count"], seen["unscored"]["first"]) == ("2 of 130 scenes", ["–", "–"])
    clean = sum(given is not None and given["EP"] >= 0.5 and given["NC"] == 1 for given in scores(1).values())
    assert seen["clean"]["count"] == f"{clean} of 130 scenes"


def test_details(seen: dict[str, Any]) -> None:
    details = seen["details"]
    assert (details["pictures"], details["paths"], details["expanded"]) == (1, 0, "true")
    assert seen["plain"] == [0, 1], "trajectories of a scene without a picture are drawn"
    assert HOSTILE in details["text"]
    assert "at-fault collision, off the drivable area, time to collision too short" in details["text"]
    assert "progress below" not in details["text"]
    assert seen["low"] == ["NC"]
    assert seen["closed"] == 0


def test_a_picture_is_shown_larger(seen: dict[str, Any]) -> None:
    assert seen["large"] == [True, True, False]


def test_the_table_is_saved_as_it_is_shown(seen: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(seen["saved"])))
    assert [row["scene"] for row in rows] == ["t001", "t003", "t005", "t007", "t009"]
    assert rows[0]["log"] == "</script><log 1"
    assert [rows[0][f"PDMS of {name}"] for name in ("one", HOSTILE)] == ["0.205", "0.155"]


def test_nothing_is_wider_than_a_narrow_window(seen: dict[str, Any]) -> None:
    assert seen["wider"] == 0


def test_names_of_runs_are_whole_on_a_phone(seen: dict[str, Any]) -> None:
    assert seen["names"] == [{"lines": 1, "beside": True}] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_as_a_picture(folder: Path, scheme: str) -> None:
    """The figures are painted in the colours of the runs, on the ground of the scheme; nothing else has the green."""
    picture = folder / f"{scheme}.png"
    options = ["--hide-scrollbars", "--window-size=1200,5200", f"--screenshot={picture}", "--virtual-time-budget=5000"]
    browse(folder, folder / "report.html", *options, f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    with Image.open(picture) as image:
        assert image.width == 1200
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    styles = (folder / "report.html").read_text().partition("@media (prefers-color-scheme: dark)")
    style = styles[0 if scheme == "light" else 2]
    count = {}
    for name in ("page", "run-0", "run-1", "run-2", "run-human"):
        (colour,) = re.findall(rf"--{name}: #(\w{{6}});", style)
        count[name] = int((pixels == [int(colour[at : at + 2], 16) for at in (0, 2, 4)]).all(axis=1).sum())
    assert count["page"] > len(pixels) / 3
    assert min(count["run-0"], count["run-1"]) > 5000, "histograms, intervals and marks of both runs"
    assert count["run-2"] == 0
    assert 0 < count["run-human"] < 1000, "one trajectory"
