"""The order of scenes: of seed and epoch alone, each once, and from the middle of an epoch on."""

from __future__ import annotations

from collections import Counter

import pytest
from interrupted_training import Scenes

from navsim_recogdrive.policy.data_order import SceneOrder, scene_tokens


def tokens(order: SceneOrder, scenes: Scenes) -> list[str]:
    return [scenes.tokens[index] for index in order]


def test_the_order_is_of_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, shuffled = Scenes(), Scenes()
    shuffled.tokens = scenes.tokens[::-1]
    order = SceneOrder(scenes, 1)
    first = tokens(order, scenes)
    assert sorted(first) == sorted(scenes.tokens) != first
    assert tokens(order, scenes) == first
    assert tokens(SceneOrder(shuffled, 1), shuffled) == first, "a cache folder may list its scenes in any order"
    assert tokens(SceneOrder(scenes, 2), scenes) != first
    order.set_epoch(1)
    assert sorted(tokens(order, scenes)) == sorted(first) != tokens(order, scenes)


@pytest.mark.parametrize(("ranks", "twice"), [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_every_scene_once_on_one_rank_but_those_that_fill_up(ranks: int, twice: int) -> None:
    scenes = Scenes(14)
    parts = [tokens(SceneOrder(scenes, 0, ranks, rank), scenes) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    counts = Counter(token for part in parts for token in part)
    assert set(counts) == set(scenes.tokens)
    assert sorted(counts.values()) == [1] * (14 - twice) + [2] * twice


def test_an_epoch_is_entered_where_it_was_left() -> None:
    scenes = Scenes()
    whole = SceneOrder(scenes, 0, 2, 1)
    orders = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        orders.append(list(whole))
    order = SceneOrder(scenes, 0, 2, 1)
    order.begin_at(1, 4)
    assert len(order) == 7, "Lightning counts the batches of the whole epoch"
    for _ in range(2):  # Lightning may make an iterator that it does not use
        assert list(order) == orders[1][4:]
    order.set_epoch(2)
    assert list(order) == orders[2]
    order.set_epoch(0)
    assert list(order) == orders[0]


def test_tokens_of_a_data_set() -> None:
    class FromLogs:
        _scene_loader = Scenes(3)

    assert scene_tokens(Scenes(3)) == scene_tokens(FromLogs()) == Scenes(3).tokens
    assert scene_tokens([1, 2]) is None
    assert sorted(SceneOrder([7, 8, 9], 0)) == [0, 1, 2]
