"""What goes wrong in a run, and what is kept of it."""

from __future__ import annotations

import json
import random
import resource
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from label_runs import FAMILIES, distinct, read_answers, read_lines, run_arguments, start_run, wait_until
from label_scenes import busy_scene, sensible, write_scenes
from label_server import Behaviour, Body, ChatServer, Disconnect, Raw, Status, is_probe, text_of

pytest.importorskip("openai", reason="the client needs the extra 'labels'")
pytest.importorskip("tenacity", reason="the client needs the extra 'labels'")

from navsim_recogdrive.pretraining.labelling.__main__ import main


def test_troubles_on_the_way_leave_no_trace(tmp_path: Path) -> None:
    write_scenes(tmp_path / "calm", [busy_scene("one"), busy_scene("two")])
    write_scenes(tmp_path / "rough", [busy_scene("one"), busy_scene("two")])
    with ChatServer(sensible) as server:
        assert main(run_arguments(tmp_path / "calm", server.url)) == 0
    draw = random.Random(0)
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def behave(body: Body) -> Behaviour:
        with lock:
            trouble = draw.choice(
                [Status(429, {"Retry-After": "0.05"}), Status(500), Raw(b"{"), Disconnect(), None, None, None, None]
            )
            first = seen[json.dumps(body)] == 0
            seen[json.dumps(body)] += 1
        return trouble if trouble is not None and first and not is_probe(body) else sensible(body)

    with ChatServer(behave) as server:
        assert main(run_arguments(tmp_path / "rough", server.url, "--patience", "60")) == 0
    assert len(server.asked) > 2 * 3 * FAMILIES  # there was trouble
    assert (tmp_path / "rough" / "out.jsonl").read_bytes() == (tmp_path / "calm" / "out.jsonl").read_bytes()


def test_a_refused_request_costs_one_question_and_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
    (tmp_path / "images" / "two.jpg").write_bytes(b"")

    def behave(body: Body) -> Behaviour:
        refused = not is_probe(body) and "Traffic: light" in text_of(body)
        return Status(400, message="against our policy") if refused else sensible(body)

    with ChatServer(behave) as server:
        assert main(run_arguments(tmp_path, server.url)) == 0
        said = capsys.readouterr().out
        assert len(read_lines(tmp_path / "out.jsonl")) == FAMILIES - 2  # density, and the description which names it
        assert f"{2 + FAMILIES} questions have no answer" in said
        write_scenes(tmp_path, [busy_scene("one"), busy_scene("two")])
        server.behave = sensible
        assert main(run_arguments(tmp_path, server.url)) == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 2 * FAMILIES


def test_no_server_is_said_at_once_and_no_scene_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").write_text("not a scene\n")
    server = ChatServer(sensible).start()
    server.stop()
    begun = time.monotonic()
    assert main(run_arguments(tmp_path, server.url, "--patience", "600")) == 1
    assert time.monotonic() - begun < 10.0
    assert f"the server at {server.address} does not answer" in capsys.readouterr().err


def test_a_server_that_goes_away_is_waited_for_then_all_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path, [busy_scene(str(number)) for number in range(3)])

    def behave(body: Body) -> Behaviour:
        if len(server.asked) > 20:
            threading.Thread(target=server.stop).start()
            return Disconnect()
        return sensible(body)

    with ChatServer(behave) as server:
        begun = time.monotonic()
        assert main(run_arguments(tmp_path, server.url, "--concurrency", "4")) == 1
        assert time.monotonic() - begun >= 2.0  # the patience
        error = capsys.readouterr().err
        assert "has answered nothing for 2 s" in error
        assert "the same command continues" in error
        kept = len(read_answers(tmp_path))
        assert 16 <= kept <= 20
        assert not (tmp_path / "out.jsonl").exists()
        server.behave, before = sensible, distinct(server)
        server.start()
        assert main(run_arguments(tmp_path, server.url)) == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 3 * FAMILIES
    assert len(read_answers(tmp_path)) == distinct(server) == 3 * 3 * FAMILIES
    assert before < distinct(server)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_killed_run_keeps_everything_and_goes_on(tmp_path: Path, number: int, code: int) -> None:
    write_scenes(tmp_path, [busy_scene(str(number)) for number in range(3)])
    hold = threading.Event()

    def behave(body: Body) -> Behaviour:
        if len(server.asked) > 20:
            hold.wait(60)
        return sensible(body)

    with ChatServer(behave) as server:
        process = start_run(tmp_path, server, "--concurrency", "4", "--timeout", "60")
        wait_until(lambda: len(server.asked) >= 24)
        answers = tmp_path / "out.jsonl.answers.jsonl"
        wait_until(lambda: len(answers.read_bytes().splitlines()) == 20)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        if number == signal.SIGINT:
            assert "interrupted; the same command continues" in error
            assert "Traceback" not in error
        hold.set()
        assert len(read_answers(tmp_path)) == 20
        with answers.open("ab") as file:
            file.write(b'{"key": "12')  # what a kill in the middle of a line leaves
        server.asked.clear()
        assert main(run_arguments(tmp_path, server.url)) == 0
    assert len(server.asked) == 3 * 3 * FAMILIES - 20
    assert len(read_lines(tmp_path / "out.jsonl")) == 3 * FAMILIES


def test_a_full_disk_stops_the_run_and_leaves_valid_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene("one")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ChatServer(sensible) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        try:
            assert main(run_arguments(tmp_path, server.url)) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "make room and run the command again" in " ".join(capsys.readouterr().err.split())
        kept = len(read_answers(tmp_path))
        assert 5 < kept < 3 * FAMILIES
        server.asked.clear()
        assert main(run_arguments(tmp_path, server.url)) == 0
        assert len(server.asked) == 3 * FAMILIES - kept
    assert len(read_lines(tmp_path / "out.jsonl")) == FAMILIES


def test_a_wrong_data_root_does_not_run_through_all_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, [busy_scene(str(number)) for number in range(50)])
    with ChatServer(sensible) as server:
        arguments = run_arguments(tmp_path, server.url)
        arguments[arguments.index("--data-root") + 1] = str(tmp_path / "elsewhere")
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "the first 20 questions all failed, the last one: bad image" in error
    assert "elsewhere" in error
    assert server.asked == []


def test_scenes_are_checked_with_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_scenes(tmp_path, [busy_scene("one")])
    with ChatServer(sensible) as server:
        for line in ("{", "[]", '{"token": "x"}', '{"token": 1e999}'):
            path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
            assert main(run_arguments(tmp_path, server.url)) == 1
            assert "records.jsonl, line 2 is no scene record" in capsys.readouterr().err
        path.unlink()
        assert main(run_arguments(tmp_path, server.url)) == 1
        assert "cannot read the scenes" in capsys.readouterr().err
