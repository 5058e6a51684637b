"""The page without a browser: well formed, complete in itself, and its data are those that were read."""

from __future__ import annotations

import base64
import colorsys
import csv
import re
from pathlib import Path

import pytest
from html_pages import HOSTILE, SCENES, Page, scores, write_report
from score_files import write_two_stages, write_v1, write_v2

from navsim_recogdrive.report import figures
from navsim_recogdrive.report.__main__ import main
from navsim_recogdrive.report.markup import Markup, element, embedded_json
from navsim_recogdrive.report.run_keys import DISTINCT, run_keys


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
    assert data["failed"][0][1] == 0b10000  # slow
    assert data["failed"][0][10] == 0b00001  # collision; its progress is lowered by it, so that it says nothing more
    assert data["failed"][0][128] == 0b01011  # collision, off-road, time to collision
    assert [data["metrics"][failure["metric"]]["short"] for failure in data["failures"]] == [
        "NC", "DAC", "DDC", "TTC", "EP", "C",
    ]  # fmt: skip
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
    drawn = [(name, a.get("data-token")) for name, a in page.elements
             if a.get("class") in ("card", "picture", "bird-eye")]  # fmt: skip
    assert drawn[:4] == [("article", "t128"), ("button", None), ("article", "t000"), ("svg", None)]
    with_picture = [index for index, (name, token) in enumerate(drawn) if token == "t128"]
    assert all(drawn[index + 1][0] != "svg" for index in with_picture), "colours of picture and figure may differ"
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
    assert "p-values smaller" not in notes


def coloured(page: Page) -> list[str]:
    return [value for value in page.having("class") if value in ("better", "worse")]


@pytest.mark.parametrize(
    ("logs", "reason"), [(3, "there are only 3 logs"), (None, "the log of 41 of 42 scenes is not known")]
)
def test_p_values_over_scenes_are_not_coloured(tmp_path: Path, logs: int | None, reason: str) -> None:
    """Over logs the same runs give a colour."""
    first = {f"t{index}": {"score": 0.1 + (index % 7) / 20} for index in range(42)}
    second = {token: {"score": values["score"] + 0.2} for token, values in first.items()}
    one, two = write_v1(tmp_path / "one.csv", first), write_v1(tmp_path / "two.csv", second)

    def read(names: list[str]) -> tuple[Page, str]:
        rows = [f"{token},{name}" for token, name in zip(first, names, strict=True)]
        (tmp_path / "facts.csv").write_text("token,log_name\n" + "\n".join(rows) + "\n")
        output = tmp_path / "a.html"
        options = ["--scene-facts", str(tmp_path / "facts.csv"), "--output", str(output), "--replicates", "200"]
        assert main([str(one), str(two), *options, "--formats", "latex"]) == 0
        return Page(output.read_text()), (tmp_path / "a_differences.tex").read_text()

    page, latex = read([f"log {index % logs}" if logs else "log" * (index == 0) for index in range(42)])
    assert coloured(page) == []
    assert "p<0.001" in page.texts["small"]
    notes = " ".join(page.texts["li"])
    assert f"take the scenes as independent: {reason}." in notes
    assert "p-values smaller than they should be; no difference is coloured" in notes
    assert any(f"({reason}): p is too small." in text for text in page.texts["caption"])
    assert "$^{*}$" not in latex
    page, latex = read([f"log {index % 7}" for index in range(42)])
    assert coloured(page) == ["better"]
    assert "+20.0$^{*}$" in latex


def test_failures_that_cost_nothing_are_named(page: Page, tmp_path: Path) -> None:
    (caption,) = [text for text in page.texts["caption"] if text.startswith("Scenes with a sub-score below 1")]
    assert "Wrong driving direction has weight 0 in NAVSIM's PDMS." in caption
    assert "NAVSIM multiplies progress by NC and DAC, so it is judged only where these are 1" in caption
    assert "wrong driving direction (weight 0)" in page.texts["option"]
    assert "scenes with NC and DAC of 1" in page.texts["small"]
    path = write_v2(tmp_path / "a.csv", {"a": {"DDC": 0.0, "score": 0.0}})
    assert main([str(path), "--output", str(tmp_path / "a.html")]) == 0
    text = (tmp_path / "a.html").read_text()
    assert "weight 0" not in text
    assert "multiplies" not in text


def test_only_scenes_whose_progress_is_plain_are_in_its_histogram(page: Page) -> None:
    """Of the first run's 130 scenes 14 have a collision."""
    labels = [label for label in page.having("aria-label") if label.startswith("Histogram of ego progress of one,")]
    assert labels[0].startswith("Histogram of ego progress of one, 116 scenes. 0.00 to 0.05: 0, ")


def test_the_same_command_gives_the_same_page(report: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path, "--scenes", "3").read_text()
    assert again.replace(str(tmp_path), str(report.parent)) == report.read_text()


def test_green_is_the_human_drivers_alone(tmp_path: Path) -> None:
    """A card's colours: runs by their place, the human green and dashed, as a run and as a trajectory."""
    names = ["a", "b", "human", "c"]
    runs = [f"{name}={write_v1(tmp_path / f'{name}.csv', {'t': {'score': 0.5}})}" for name in names]
    (tmp_path / "t.json").write_text('{"trajectories": {"human": [[1, 0]], "c": [[1, 1]], "x": [[2, 1]]}}')
    assert main([*runs, "--output", str(tmp_path / "a.html"), "--pictures", str(tmp_path)]) == 0
    text = (tmp_path / "a.html").read_text()
    styles = [value for value in Page(text).having("class") if value.startswith("path ")]
    assert styles[:3] == ["path run-human", "path run-2", "path other"]
    assert re.search(r"\.path\.run-human \{ stroke-dasharray: ", text)
    green, others = (
        [colorsys.rgb_to_hsv(*(int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))) for colour in found]
        for found in (re.findall(r"--run-human: #(\w+);", text), re.findall(r"--run-\d: #(\w+);", text))
    )
    assert len(green) == 2, "light and dark"
    assert all(abs(own[0] - run[0]) > 0.09 or run[1] < 0.2 for own in green for run in others)
    assert re.findall(r"--(\S+): #009e73;", text) == ["run-human"]
    assert Page(text).having("class").count("fill run-human") == len(re.findall("fill run-human", text)) > 0


def test_a_card_with_a_picture_shows_no_colour_of_a_run(page: Page, report: Path) -> None:
    cards = re.findall(r'<article class="card" data-token="(\w+)".*?</article>', report.read_text(), re.S)
    bodies = re.findall(r'<article class="card".*?</article>', report.read_text(), re.S)
    marked = {token: 'class="key"' in body for token, body in zip(cards, bodies, strict=True)}
    assert marked["t000"]
    assert not marked["t128"]


def test_runs_are_told_apart_by_colour_and_mark() -> None:
    names = [f"run {index}" for index in range(DISTINCT)]
    keys = run_keys([*names[:4], "human", *names[4:]])
    assert list(keys)[4] == "human"
    assert len(set(keys.values())) == DISTINCT + 1
    assert run_keys(names)["run 9"] == keys["run 9"], "the human driver takes no run's look"
    shapes = {re.sub(r"run-\w+", "", figures.key_mark(key)) for key in keys.values()}
    assert len(shapes) == 5


def test_stages_are_shown_apart(tmp_path: Path) -> None:
    first = {"a": {"score": 0.8}, "b": {"DAC": 0.0, "score": 0.0}}
    second = {"s": {"NC": 0.0, "score": 0.0}, "t": {"score": 0.6}, "u": {"EP": 0.1}}
    path = write_two_stages(tmp_path / "a.csv", first, second, 0.4)
    (tmp_path / "facts.csv").write_text("token,command\na,left\ns,left\nt,right\n")
    options = ["--scene-facts", str(tmp_path / "facts.csv"), "--output", str(tmp_path / "a.html")]
    assert main([f"x={path}", *options, "--formats", "csv"]) == 0
    page = Page((tmp_path / "a.html").read_text())
    labels = [label for label in page.having("aria-label") if label.startswith("Histogram of")]
    assert [label.split(" scenes.")[0] for label in labels] == [
        "Histogram of extended PDM score of x, stage one, 2",
        "Histogram of ego progress of x, stage one, 2",
        "Histogram of extended PDM score of x, stage two, 3",
        "Histogram of ego progress of x, stage two, 3",
    ]
    captions = [text for text in page.texts["figcaption"] if text.startswith("At-fault collision")]
    assert captions == ["At-fault collision, stage one", "At-fault collision, stage two"]
    with (tmp_path / "a_failures.csv").open(newline="") as file:
        rows = [(row["failure"], row["stage"], row["scenes"], row["left"]) for row in csv.DictReader(file)]
    assert rows[:4] == [
        ("at-fault collision", "stage one", "0", "0 of 1"),
        ("at-fault collision", "stage two", "1", "1 of 1"),
        ("off the drivable area", "stage one", "1", "0 of 1"),
        ("off the drivable area", "stage two", "0", "0 of 1"),
    ]
    with (tmp_path / "a_commands.csv").open(newline="") as file:
        means = [(row["command"], row["stage"], row["scenes"], row["EPDMS"]) for row in csv.DictReader(file)]
    assert means == [
        ("left", "stage one", "1", "0.8"), ("left", "stage two", "1", "0.0"),
        ("right", "stage one", "0", ""), ("right", "stage two", "1", "0.6"),
    ]  # fmt: skip


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
    assert "95 % intervals over 3 scenes, taken as independent: the log of 3 of 3 scenes is not known" in out


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
