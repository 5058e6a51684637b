"""The reward in this process and in worker processes that die, hang and are left behind."""

from __future__ import annotations

import logging
import lzma
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pdm_proposals import NavsimScore, proposals

pytestmark = pytest.mark.navsim


class Calls:
    """Pickles to a call, for metric caches that do harm when they are read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.fixture(scope="module")
def folder(metric_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's metric caches, and three that kill, stop and fail their reader: ``kills``, ``hangs``, ``fails``."""
    root = tmp_path_factory.mktemp("reward") / "metric_cache"
    shutil.copytree(metric_cache, root)
    (table,) = (root / "metadata").glob("*.csv")
    lines = table.read_text().replace(str(metric_cache), str(root)).splitlines()
    harmful = {"kills": Calls(os._exit, 9), "hangs": Calls(time.sleep, 1000.0), "fails": Calls(int, "x")}
    for token, content in harmful.items():
        path = root / "log" / "unknown" / token / "metric_cache.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(lzma.compress(pickle.dumps(content), preset=0))
        lines.append(str(path))
    table.write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def here(folder: Path) -> Iterator[Any]:
    """A reward without workers."""
    from navsim_recogdrive.agents.pdm_reward import PDMReward, PDMRewardSettings

    reward = PDMReward(PDMRewardSettings(str(folder), workers=0, scenes_in_memory=20))
    yield reward
    reward.close()


@pytest.fixture(scope="module")
def pooled(folder: Path) -> Iterator[Any]:
    """A reward with two workers that are ready."""
    from navsim_recogdrive.agents.pdm_reward import PDMReward, PDMRewardSettings

    reward = PDMReward(PDMRewardSettings(str(folder), workers=2, worker_timeout_s=3.0))
    groups = np.stack([proposals(0)[:2]] * 4)
    reward.submit(reward.caches.tokens[:4], groups).result()
    yield reward
    reward.close()


def groups(scenes: int, group_size: int = 4) -> NDArray[np.float32]:
    return np.stack([proposals(seed)[5 : 5 + group_size] for seed in range(scenes)])


def assert_same(one: Any, other: Any) -> None:
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert one.sub_scores.keys() == other.sub_scores.keys()
    for name in one.sub_scores:
        np.testing.assert_array_equal(one.sub_scores[name], other.sub_scores[name])


def test_the_reward_is_navsims_score_with_the_published_weights(here: Any) -> None:
    tokens = here.caches.tokens[:2]
    trajectories = groups(2)
    found = here.submit(tokens, trajectories).result()
    assert found.scores.dtype == np.float32
    assert found.valid.tolist() == [True, True]
    assert found.errors == {}
    assert found.seconds > 0
    navsim = NavsimScore(progress_weight=10.0)
    for row, token in enumerate(tokens):
        scene = here.caches.read(token)
        for column, poses in enumerate(trajectories[row]):
            theirs = navsim(scene, poses)
            assert found.scores[row, column] == np.float32(theirs["score"])
            assert all(found.sub_scores[name][row, column] == np.float32(theirs[name]) for name in found.sub_scores)


def test_workers_score_as_this_process_does_and_in_order(here: Any, pooled: Any) -> None:
    known = here.caches.tokens[:-3]
    tokens = [*known[:5], known[0], *known[5:]]  # one twice
    trajectories = groups(len(tokens))
    expected = here.submit(tokens, trajectories).result()
    first = pooled.submit(tokens, trajectories)
    second = pooled.submit(tokens[::-1], trajectories[::-1])
    assert_same(second.result(), here.submit(tokens[::-1], trajectories[::-1]).result())
    assert_same(first.result(), expected)
    assert first.result() is first.result()


def test_submitting_to_workers_does_not_wait(pooled: Any) -> None:
    tokens = pooled.caches.tokens[:8]
    trajectories = groups(8, 16)
    started = time.monotonic()
    pending = pooled.submit(tokens, trajectories)
    submitted = time.monotonic() - started
    result = pending.result()
    assert submitted < result.seconds / 4
    time.sleep(0.3)
    pending = pooled.submit(tokens[:1], trajectories[:1, :1])
    time.sleep(2.0)
    assert pending.result().seconds < 1.5, "the time until the result is asked for does not count"


def test_a_killed_worker_is_replaced_and_its_scenes_scored(
    here: Any, pooled: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = here.caches.tokens[:6]
    trajectories = groups(6)
    before = pooled.process_ids
    pending = pooled.submit(tokens, trajectories)
    os.kill(before[0], signal.SIGKILL)
    assert_same(pending.result(), here.submit(tokens, trajectories).result())
    after = pooled.process_ids
    assert after[1:] == before[1:]
    assert after[0] != before[0]
    assert "ended with signal SIGKILL: replaced" in caplog.text


def test_harmful_scenes_are_masked_and_reported_once(here: Any, pooled: Any, caplog: pytest.LogCaptureFixture) -> None:
    good = here.caches.tokens[:3]
    tokens = [good[0], "kills", good[1], "hangs", "fails", "unknown", good[2]]
    trajectories = groups(len(tokens))
    trajectories[6, 1, 0, 0] = np.nan
    with caplog.at_level(logging.WARNING):
        found = pooled.submit(tokens, trajectories).result()
    assert found.valid.tolist() == [True, False, True, False, False, False, False]
    assert np.isnan(found.scores[~found.valid]).all()
    assert all(np.isnan(rows[~found.valid]).all() for rows in found.sub_scores.values())
    assert_same(here.submit([good[0], good[1]], trajectories[[0, 2]]).result(), _rows(found, [0, 2]))
    assert found.errors.keys() == {"kills", "hangs", "fails", "unknown", good[2]}
    assert found.errors["kills"] == "2 worker processes ended while they scored it, the last with exit code 9"
    assert "signal SIGKILL" in found.errors["hangs"]
    assert "invalid literal for int" in found.errors["fails"]
    assert "scene unknown has no metric cache" in found.errors["unknown"]
    assert "[1] are not finite" in found.errors[good[2]]
    assert "scene fails is left out" in caplog.text

    caplog.clear()
    again = pooled.submit(["fails", good[0]], trajectories[:2]).result()
    assert again.valid.tolist() == [False, True]
    assert again.errors.keys() == {"fails"}
    assert "left out" not in caplog.text


def _rows(result: Any, rows: list[int]) -> Any:
    from navsim_recogdrive.rl.reward import RewardResult

    parts = {name: values[rows] for name, values in result.sub_scores.items()}
    return RewardResult(result.scores[rows], result.valid[rows], parts, result.seconds)


def test_scenes_stay_with_their_worker_within_its_share(pooled: Any) -> None:
    pool = pooled._pool
    tokens = pooled.caches.tokens[:8]
    where = []
    for _ in range(2):
        jobs = pool.submit(tokens, groups(8, 1))
        held = [{job.token for job in jobs if job in worker.jobs} for worker in pool._workers]
        pool.wait_for(jobs)
        where.append(held)
    assert where[0] == where[1]
    assert [len(held) for held in where[0]] == [4, 4]


def test_no_worker_outlives_its_process(folder: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "from navsim_recogdrive.agents.reward_pool import RewardPool\n"
        "from navsim_recogdrive.agents.reward_messages import ScoringSettings\n"
        "pool = RewardPool(ScoringSettings(sys.argv[1]), workers=2)\n"
        "print(*pool.process_ids, flush=True)\n"
        "if sys.argv[2] != 'exit': os.kill(os.getpid(), getattr(signal, sys.argv[2]))\n"
    )
    ends = [("exit", 0), ("SIGINT", None), ("SIGKILL", -signal.SIGKILL)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), end],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for end, _ in ends
    ]
    for run, (end, code) in zip(runs, ends, strict=True):
        output, _ = run.communicate(timeout=120)
        workers = [int(word) for word in output.split()]
        assert len(workers) == 2
        assert run.returncode == code or (end == "SIGINT" and run.returncode != 0)
        deadline = time.monotonic() + 30
        while any(_is_running(worker) for worker in workers):
            assert time.monotonic() < deadline, f"workers left behind after {end}"
            time.sleep(0.1)


def _is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and not collected by the init process of a container


def test_a_forked_child_does_not_keep_workers_from_ending(folder: Path) -> None:
    from navsim_recogdrive.agents.reward_messages import ScoringSettings
    from navsim_recogdrive.agents.reward_pool import RewardPool

    pool = RewardPool(ScoringSettings(str(folder)), workers=1)
    pool.wait_for(pool.submit(["fails"], groups(1)))
    worker = pool._workers[0].process
    child = os.fork()  # as a loader's worker is: it holds the connection open, too
    if child == 0:
        time.sleep(60)
        os._exit(0)
    pool.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert worker.returncode == 0, "it ended by itself"


def test_workers_have_one_thread_and_no_gpu(pooled: Any) -> None:
    for process_id in pooled.process_ids:
        environment = Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
        assert {b"OMP_NUM_THREADS=1", b"OPENBLAS_NUM_THREADS=1", b"CUDA_VISIBLE_DEVICES="} <= set(environment)


def test_a_worker_that_cannot_start_says_why(folder: Path) -> None:
    from navsim_recogdrive.agents.reward_messages import ScoringSettings
    from navsim_recogdrive.agents.reward_pool import RewardPool, RewardWorkerFailed

    pool = RewardPool(ScoringSettings(str(folder / "nowhere")), workers=1)
    jobs = pool.submit(["a"], groups(1))
    with pytest.raises(
        RewardWorkerFailed, match=r"cannot score: UnusableMetricCache: no metric cache folder .*nowhere"
    ):
        pool.wait_for(jobs)


def _spoiled_starts(monkeypatch: pytest.MonkeyPatch, program: str, starts: int) -> list[int]:
    """Let the next ``starts`` workers run ``program`` instead; the numbers of all that are started from now on."""
    from navsim_recogdrive.agents import reward_pool

    started: list[int] = []
    original = subprocess.Popen

    def start(command: list[str], **settings: Any) -> Any:
        started.append(len(started))
        return original([*command[:2], program] if len(started) <= starts else command, **settings)

    monkeypatch.setattr(reward_pool.subprocess, "Popen", start)
    return started


_KILLED, _FAILS = "import os; os.kill(os.getpid(), 9)", "raise SystemExit(1)"


def test_a_worker_killed_while_it_starts_is_replaced_three_times(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from navsim_recogdrive.agents.reward_messages import ScoringSettings
    from navsim_recogdrive.agents.reward_pool import RewardPool, RewardWorkerFailed

    started = _spoiled_starts(monkeypatch, _KILLED, 9)
    pool = RewardPool(ScoringSettings(str(folder)), workers=1)
    jobs = pool.submit(["a"], groups(1))
    with pytest.raises(RewardWorkerFailed, match="signal SIGKILL before it could score"):
        pool.wait_for(jobs)
    assert len(started) == 4
    assert caplog.text.count("signal SIGKILL: replaced, 1 scenes again") == 3
    assert jobs[0].deaths == 0, "it was not in work when they died"


def test_a_failing_start_is_tried_again_only_if_one_has_succeeded(
    here: Any, pooled: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement's; the scene that waits meanwhile is not given up."""
    from navsim_recogdrive.agents.reward_messages import ScoringSettings
    from navsim_recogdrive.agents.reward_pool import RewardPool, RewardWorkerFailed

    tokens, trajectories = here.caches.tokens[:2], groups(2)
    expected = here.submit(tokens, trajectories).result()
    started = _spoiled_starts(monkeypatch, _FAILS, 2)
    pending = pooled.submit(tokens, trajectories)
    os.kill(pooled.process_ids[0], signal.SIGKILL)
    assert_same(pending.result(), expected)
    assert len(started) == 3

    started = _spoiled_starts(monkeypatch, _FAILS, 9)
    pool = RewardPool(ScoringSettings(str(folder)), workers=1)
    with pytest.raises(RewardWorkerFailed, match="exit code 1 before it could score"):
        pool.wait_for(pool.submit(tokens, trajectories))
    assert len(started) == 1


def test_bad_calls_are_refused(folder: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import UnusableMetricCache
    from navsim_recogdrive.agents.pdm_reward import PDMReward, PDMRewardSettings

    reward = PDMReward(PDMRewardSettings(str(folder), workers=0))
    with pytest.raises(ValueError, match=r"2 scenes need trajectories \[2, G, 8, 3\], found \[2, 8, 3\]"):
        reward.submit(["a", "b"], groups(2)[:, 0])
    empty = reward.submit([], np.empty((0, 4, 8, 3), np.float32)).result()
    assert empty.scores.shape == (0, 4)
    assert empty.valid.shape == (0,)
    assert reward.missing_tokens(["absent", reward.caches.tokens[0]]) == ["absent"]
    reward.close()
    reward.close()
    with pytest.raises(RuntimeError, match="closed"):
        reward.submit(["a"], groups(1))
    with pytest.raises(ValueError, match="workers must be at least 0, found -1"):
        PDMRewardSettings(str(folder), workers=-1)
    with pytest.raises(ValueError, match="worker_timeout_s must be more than 0"):
        PDMRewardSettings(str(folder), worker_timeout_s=0)
    with pytest.raises(ValueError, match="progress_weight is a setting of its own"):
        PDMRewardSettings(str(folder), scorer={"progress_weight": 1.0})
    with pytest.raises(ValueError, match="no scorer setting speed_weight"):
        PDMReward(PDMRewardSettings(str(folder), scorer={"speed_weight": 1.0}))
    with pytest.raises(UnusableMetricCache, match="no metric cache folder"):
        PDMReward(PDMRewardSettings(str(folder / "nowhere")))
