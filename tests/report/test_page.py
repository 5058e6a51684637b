"""The page without a browser: well formed, complete in itself, and its data are those that were read."""

from __future__ import annotations

import base64
import csv
import re
from pathlib import Path

import pytest
from html_pages import HOSTILE, SCENES, Page, scores, write_report
from score_files import write_two_stages, write_v1, write_v2

from navsim_recogdrive.report.__main__ import main
from navsim_recogdrive.report.markup import Markup, element, embedded_json


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(
        folder, "--formats", "csv", "md", "latex", "--tokens", str(folder / "tokens.txt"), "--scenes", "3"
    )


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text())


def test_markup_is_escaped_but_for_markup() -> None:
    assert element("td", "a<b", Markup("<br>"), None, class_="x\"&'", hidden=False, open=True, data_run=2) == (
        '<td class="x&quot;&amp;&#x27;" open data-run="2">a&lt;b<br></td>'
    )
    assert embedded_json("d", ["</script><!--&"]) == (
        '<script type="application/json" id="d">["\\u003c/script\\u003e\\u003c!--\\u0026"]</script>'
    )


def test_nothing_is_loaded_from_elsewhere(report: Path, page: Page) -> None:
    for attribute in ("src", "href", "action", "poster", "data", "xlink:href"):
        for address in page.having(attribute):
            assert address.startswith(("data:image/", "#")), (attribute, address[:80])
    text = report.read_text()
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]|@import|url\(|fetch\(|XMLHttpRequest|eval\(|innerHTML *=", text)
    (policy,) = [attributes["content"] for name, attributes in page.elements
                 if name == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_no_name_becomes_markup(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert not names & {"b", "i", "log"}
    assert page.texts["title"][0] == f"Title {HOSTILE}"
    assert HOSTILE in "".join(page.texts["th"])
    assert "<i>A & B</i>" in page.texts["p"]


def test_the_parts_are_linked_and_named(page: Page) -> None:
    ids = page.having("id")
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in page.having("href")} <= set(ids)
    assert set(page.having("aria-labelledby")) <= set(ids)
    for name, attributes in page.elements:
        if attributes.get("role") == "img":
            assert name == "svg"
            assert attributes.get("aria-label") or attributes.get("class") == "bird-eye"
        if "scroll" in str(attributes.get("class")):
            assert attributes.get("tabindex") == "0", "what scrolls must be reached by keyboard"
            assert attributes.get("aria-label")
        if name == "img":
            assert attributes.get("alt")
    assert page.elements[0] == ("html", {"lang": "en"})


def test_embedded_scenes_are_those_of_the_files(page: Page) -> None:
    data = page.data
    assert data["runs"] == ["one", HOSTILE]
    assert data["tokens"] == list(scores(0))
    assert data["logs"][3] == "</script><log 3"
    assert data["commands"][:2] == ["left", "right"]
    assert data["speeds"][7] == 0.7
    for run in range(2):
        for scene, given in enumerate(scores(run).values()):
            values = [None] * 7 if given is None else [given["score"], given["NC"], given.get("DAC", 1), 1, given["EP"],
                                                        given.get("TTC", 1), 1]  # fmt: skip
            assert [metric[scene] for metric in data["scores"][run]] == values
    assert data["changes"][1][:3] == [1, -1, 0]
    assert data["changes"][1][129] is None
    assert data["failed"][0][10] == 0b10001
    assert data["failed"][0][128] == 0b11011  # collision, off-road, time to collision, slow
    assert [failure["key"] for failure in data["failures"]][:5] == [
        "collision", "off_road", "wrong_direction", "time_to_collision", "slow",
    ]  # fmt: skip
    assert data["listed"] == [[1] * SCENES, [1] * SCENES]


def test_cards_of_the_worst_scenes(report: Path, page: Page) -> None:
    cards = [(a["data-token"], a["data-run"]) for _, a in page.elements if a.get("class") == "card"]
    assert cards[:3] == [("t128", "0"), ("t000", "0"), ("t001", "0")]
    assert cards[3][0] == "t128"
    assert len(cards) == 9  # the lowest of both, and those that fell most
    pictures = page.having("src")
    assert len(pictures) == 1, "a picture of two cards is stored once"
    content = (report.parent / "pictures" / "t128.png").read_bytes()
    assert base64.b64decode(pictures[0].partition(",")[2]) == content
    tokens = (report.parent / "tokens.txt").read_text().split()
    assert tokens == list(dict.fromkeys(token for token, _ in cards))


def test_tables_stand_beside_the_page(report: Path) -> None:
    names = {path.name for path in report.parent.glob("report_*")}
    tables = ("scores", "differences", "failures", "commands")
    assert names == {f"report_{key}{end}" for key in tables for end in (".csv", ".md", ".tex")} | {"report_scenes.csv"}
    with (report.parent / "report_scenes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SCENES
    assert (rows[3]["log_name"], rows[3]["one PDMS"], rows[3][f"{HOSTILE} PDMS"]) == (
        "</script><log 3",
        "0.215",
        "0.265",
    )
    assert rows[129][f"{HOSTILE} PDMS"] == ""


def test_notes_say_what_the_numbers_rest_on(page: Page) -> None:
    notes = " ".join(page.texts["li"])
    assert "Intervals resample the 8 logs" in notes
    assert "With 8 logs every interval and every p-value is rough." in notes
    assert "All runs have scored 128 of the 130 scenes." in notes
    assert "1 of the" in notes  # scenes with pictures


def test_the_same_command_gives_the_same_page(report: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path, "--scenes", "3").read_text()
    assert again.replace(str(tmp_path), str(report.parent)) == report.read_text()


def test_one_run_two_stages_and_few_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = write_v2(tmp_path / "a.csv", {"only": {"EP": 0.3, "score": 0.7}})
    assert main([str(single), "--output", str(tmp_path / "a.html"), "--scenes", "0"]) == 0
    page = Page((tmp_path / "a.html").read_text())
    assert "differences" not in page.having("id")
    assert page.data["logs"] is None
    staged = write_two_stages(tmp_path / "b.csv", {"a": {}}, {"s": {"score": 0.5}, "t": {}}, 0.7)
    assert main([str(staged), "--output", str(tmp_path / "new" / "b.html")]) == 0
    page = Page((tmp_path / "new" / "b.html").read_text())
    assert page.data["stages"] == [0, 1, 1]
    assert "filter-stage" in page.having("id")
    out = capsys.readouterr().out
    assert "combined (NAVSIM)" in out
    assert "1 run, 3 scenes; 95 % intervals over 3 scenes" in out


def test_a_run_that_scored_nothing(tmp_path: Path) -> None:
    rows = {"a": None, "b": {"score": 0.5}}
    good = write_v1(tmp_path / "good.csv", {"a": {}, "b": {}})
    path = write_v1(tmp_path / "a.csv", rows)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1], lines[1].replace(",a,", ",b,")]) + "\n")
    assert main([str(path), str(good), "--output", str(tmp_path / "a.html")]) == 0
    assert Page((tmp_path / "a.html").read_text()).data["scores"][0][0] == [None, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.csv"], "none.csv: no such file or folder"),
        (["a.csv", "--baseline", "x"], "no run is called 'x'"),
        (["a.csv", "--cluster", "log"], "the log of 1 of 1 scenes is not known"),
        (["a.csv", "--metric-cache", "."], "is no metric cache"),
        (["a.csv", "--scene-facts", "none.csv"], "none.csv cannot be read"),
        (["a.csv", "--pictures", "none"], "none is no folder of pictures"),
    ],
)
def test_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_v1(Path("a.csv"), {"a": {}})
    assert main(options) == 2
    assert message in capsys.readouterr().err
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    "options", [["--scenes", "-1"], ["--replicates", "10"], ["--confidence", "95"], ["--formats", "pdf"]]
)
def test_options_out_of_range(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["a.csv", *options])


def test_logs_come_from_the_metric_cache_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_v1(tmp_path / "run" / "a.csv", {f"t{index}": {"score": index / 20} for index in range(20)})
    for index in range(20):
        folder = tmp_path / "cache" / f"log {index % 10}" / "unknown" / f"t{index}"
        folder.mkdir(parents=True)
        (folder / "metric_cache.pkl").write_bytes(b"")
    settings = tmp_path / "run" / "code" / "hydra"
    settings.mkdir(parents=True)
    (settings / "config.yaml").write_text(f"metric_cache_path: {tmp_path / 'cache'}\n")
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "a.html")]) == 0
    assert "over 10 logs" in capsys.readouterr().out
