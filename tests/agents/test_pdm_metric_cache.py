"""Metric caches: found after a move, refused where they cannot be used, and kept in memory within bounds."""

from __future__ import annotations

import lzma
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.navsim


class NoSuchModule:
    """Pickles to a call of a class that the reader does not have."""

    def __reduce__(self) -> Any:
        return (_of_another_version, ())


def _of_another_version() -> None:
    raise ModuleNotFoundError("No module named 'numpy._core.numeric'")


@pytest.fixture
def moved(metric_cache: Path, tmp_path: Path) -> Path:
    """The metric caches in another place, where their table has never been."""
    root = tmp_path / "moved"
    shutil.copytree(metric_cache, root)
    for table in (root / "metadata").glob("*.csv"):
        table.write_text(table.read_text().replace(str(metric_cache), "/gone/metric_cache"))
    return root


def path_of(root: Path, token: str) -> Path:
    (path,) = root.glob(f"*/*/{token}/metric_cache.pkl")
    return path


def rewrite(path: Path, content: Any) -> None:
    path.write_bytes(lzma.compress(pickle.dumps(content), preset=0))


def test_all_scenes_are_found_after_a_move(metric_cache: Path, moved: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    here, there = MetricCacheFolder(metric_cache), MetricCacheFolder(moved)
    assert len(here.tokens) > 5
    assert there.tokens == here.tokens
    token = here.tokens[0]
    assert there.read(token).ego_state.rear_axle == here.read(token).ego_state.rear_axle
    there.check(there.tokens)


def test_a_copy_reads_its_own_files(metric_cache: Path, tmp_path: Path) -> None:
    """Though its table still names the original's, which exist."""
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache

    copy = tmp_path / "copy"
    shutil.copytree(metric_cache, copy)
    folder = MetricCacheFolder(copy)
    token, other = folder.tokens[:2]
    path_of(copy, token).write_bytes(b"spoiled")
    with pytest.raises(UnusableMetricCache, match=f"{path_of(copy, token)} cannot be read"):
        folder.read(token)
    path_of(copy, other).unlink()
    folder.read(other)  # there is the original's


def test_some_files_deleted_are_missing_and_no_more(moved: Path) -> None:
    """The first of the table, or those of its whole first log."""
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    tokens = MetricCacheFolder(moved).tokens
    path_of(moved, tokens[0]).unlink()
    assert MetricCacheFolder(moved).missing_tokens(tokens) == tokens[:1]
    for token in tokens[1:-1]:
        path_of(moved, token).unlink()
    folder = MetricCacheFolder(moved)
    assert folder.missing_tokens(tokens) == tokens[:-1]
    folder.read(tokens[-1])


def test_tables_of_several_nodes_are_read(moved: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    (table,) = (moved / "metadata").glob("*.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:4]))
    table.with_name("metric_cache_metadata_node_1.csv").write_text("\n".join([lines[0], *lines[4:]]))
    assert len(MetricCacheFolder(moved).tokens) == len(lines) - 1


def test_missing_scenes_are_listed_in_order(moved: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, describe_missing

    folder = MetricCacheFolder(moved)
    first, second, third = folder.tokens[1:4]
    path_of(moved, second).unlink()
    path_of(moved, third).write_bytes(b"")
    asked = ["unknown", first, second, third]
    missing = folder.missing_tokens(asked)
    assert missing == ["unknown", second, third]
    said = describe_missing(missing, len(asked), moved)
    assert said == f"3 of 4 scenes have no metric cache in {moved}: unknown, {second}, {third}"
    assert describe_missing([str(i) for i in range(12)], 20, moved).endswith("8, 9 and 2 more")
    with pytest.raises(KeyError, match="scene unknown has no metric cache"):
        folder.read("unknown")


def test_a_folder_that_is_none_is_refused(moved: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache

    with pytest.raises(UnusableMetricCache, match=r"no metric cache folder .*nowhere: make it with"):
        MetricCacheFolder(tmp_path / "nowhere")
    with pytest.raises(UnusableMetricCache, match="or the run was interrupted"):
        MetricCacheFolder(tmp_path)
    for log in moved.glob("world-*"):
        shutil.rmtree(log)
    with pytest.raises(UnusableMetricCache, match=r"says that /gone/metric_cache/.* exists, but it does not"):
        MetricCacheFolder(moved)


def test_caches_of_another_version_are_refused_from_samples(moved: Path) -> None:
    from navsim_recogdrive.agents.compat_pdm import OCCUPANCY_MAPS
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache

    folder = MetricCacheFolder(moved)
    token, other = folder.tokens[:2]
    cache = folder.read(token)
    theirs = {41: 51, 51: 41}[OCCUPANCY_MAPS]
    maps = cache.observation._occupancy_maps
    cache.observation._occupancy_maps = (maps + maps)[:theirs]
    rewrite(path_of(moved, token), cache)
    with pytest.raises(UnusableMetricCache, match=f"it holds {theirs} occupancy maps where {OCCUPANCY_MAPS} belong"):
        folder.check(folder.tokens)

    del cache.centerline
    rewrite(path_of(moved, token), cache)
    with pytest.raises(UnusableMetricCache, match="it has no centerline"):
        folder.read(token)

    rewrite(path_of(moved, other), NoSuchModule())
    with pytest.raises(UnusableMetricCache, match=r"written with numpy 2: read it with numpy 1\.26\.4"):
        folder.read(other)


def of_the_other_version(root: Path, token: str) -> None:
    """Rewrite a metric cache with as many occupancy maps as those of the other NAVSIM version."""
    from navsim_recogdrive.agents.compat_pdm import OCCUPANCY_MAPS
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    cache = MetricCacheFolder(root).read(token)
    maps = cache.observation._occupancy_maps
    cache.observation._occupancy_maps = (maps + maps)[: {41: 51, 51: 41}[OCCUPANCY_MAPS]]
    rewrite(path_of(root, token), cache)


def test_one_cache_of_another_version_is_found_wherever_it_is(moved: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache

    folder = MetricCacheFolder(moved)
    tokens = folder.tokens[:6]
    folder.check(tokens)
    of_the_other_version(moved, tokens[-1])  # not among three evenly spaced ones
    with pytest.raises(UnusableMetricCache, match=f"{tokens[-1]}.*occupancy maps where"):
        folder.check(tokens)


def test_samples_are_drawn_from_all_logs_and_the_same_every_time(tmp_path: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder

    sizes = {"long": 30, "short": 2, "middle": 10}
    paths = [
        tmp_path / log / "unknown" / f"{log}{i}" / "metric_cache.pkl" for log, n in sizes.items() for i in range(n)
    ]
    paths[0].parent.mkdir(parents=True)
    paths[0].touch()
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "table.csv").write_text("\n".join(["file_name", *map(str, paths)]))
    folder = MetricCacheFolder(tmp_path)
    drawn = folder._draw(folder.tokens, 9)
    assert sorted(token.rstrip("0123456789") for token in drawn) == ["long"] * 4 + ["middle"] * 3 + ["short"] * 2
    assert drawn == MetricCacheFolder(tmp_path)._draw(folder.tokens, 9)
    assert drawn != sorted(drawn, key=folder.tokens.index)
    assert sorted(folder._draw(folder.tokens, 500)) == sorted(folder.tokens)


def test_every_file_is_opened(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache

    folder = MetricCacheFolder(moved)
    monkeypatch.setattr(folder, "read", lambda token: None)
    folder.check(folder.tokens)
    text, short, forbidden = folder.tokens[1:4]
    path_of(moved, text).write_bytes(b"a text")
    with pytest.raises(UnusableMetricCache, match=rf"1 of {len(folder.tokens)} metric .*{text}.*does not begin"):
        folder.check(folder.tokens)
    content = path_of(moved, short).read_bytes()
    path_of(moved, short).write_bytes(content[:-100])
    with pytest.raises(UnusableMetricCache, match=rf"{text}.*and those of {short}\."):
        folder.check(folder.tokens)
    with pytest.raises(UnusableMetricCache, match=rf"{short}.*its end is missing"):
        folder.check([short])

    path, original = path_of(moved, forbidden), Path.open

    def refuse(self: Path, *args: Any) -> Any:  # the permission bits do not stop root
        if self == path:
            raise PermissionError(13, "Permission denied")
        return original(self, *args)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnusableMetricCache, match=rf"{forbidden}.*Permission denied.*right to read"):
        folder.check([forbidden])


def test_a_long_check_says_how_far_it_is(
    moved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from navsim_recogdrive.agents import metric_cache

    folder = metric_cache.MetricCacheFolder(moved)
    with caplog.at_level("INFO", metric_cache.__name__):
        folder.check(folder.tokens[:2])
        assert caplog.text == ""
        monkeypatch.setattr(metric_cache, "_SECONDS_OF_SILENCE", -1.0)
        folder.check(folder.tokens[:2])
    assert "metric caches opened: 1 of 2" in caplog.text
    assert "metric caches read: 1 of 2" in caplog.text


@pytest.mark.parametrize("stop", [True, False])
def test_an_unusable_cache_met_in_training_stops_or_is_masked(stop: bool, moved: Path) -> None:
    import numpy as np

    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache
    from navsim_recogdrive.agents.pdm_reward import PDMReward, PDMRewardSettings

    good, bad = MetricCacheFolder(moved).tokens[:2]
    of_the_other_version(moved, bad)
    reward = PDMReward(PDMRewardSettings(str(moved), workers=0), stop_at_unusable=stop)
    plans = np.zeros((2, 1, 8, 3), np.float32)
    if stop:
        assert reward.submit([good], plans[:1]).result().valid.tolist() == [True]
        with pytest.raises(UnusableMetricCache, match=rf"scene {bad} cannot be scored: .*missing_metric_caches=skip"):
            reward.submit([good, bad], plans).result()
    else:
        assert reward.submit([good, bad], plans).result().valid.tolist() == [True, False]
    reward.close()


def test_a_truncated_file_is_named(moved: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache

    folder = MetricCacheFolder(moved)
    path = path_of(moved, folder.tokens[0])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnusableMetricCache, match=rf"{folder.tokens[0]}.*: delete the file, then run"):
        folder.read(folder.tokens[0])


def test_memory_keeps_the_last_used_scenes(moved: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, SceneMemory

    folder = MetricCacheFolder(moved)
    prepared: list[Any] = []
    memory = SceneMemory(folder, capacity=2, prepare=prepared.append)
    a, b, c = folder.tokens[:3]
    first = memory.get(a)
    memory.get(b)
    assert memory.get(a) is first
    memory.get(c)  # b was not used for the longest time
    assert len(memory) == 2
    for token in (a, b, c):
        os.unlink(path_of(moved, token))
    assert memory.get(a) is first
    memory.get(c)
    with pytest.raises(ValueError, match=b):
        memory.get(b)
    assert len(prepared) == 3
    with pytest.raises(ValueError, match="at least 1, found 0"):
        SceneMemory(folder, capacity=0, prepare=prepared.append)
