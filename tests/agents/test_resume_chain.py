"""Two processes through NAVSIM's unmodified run_training.py: one is killed, and the run goes on bit for bit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from observed_runs import Observed, batches, final
from runners import EVERY_FRAME, ON_CPU, Runners
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

SCENES, RANKS, EPOCHS = 14, 2, 2
PER_EPOCH = 4  # batches of 2 per rank


@pytest.fixture(scope="module")
def two_ranks(runners: Runners, tiny_world: Path) -> Observed:
    index = json.loads((tiny_world / "world.json").read_text())
    cache = f"cache_path={runners.experiments / 'training_cache'}"
    runners.run(
        "run_dataset_caching.py",
        *TINY_AGENT,
        "train_test_split=trainval",
        EVERY_FRAME,
        "worker=sequential",
        "experiment_name=caching",
        cache,
    )
    arguments = [
        *TINY_AGENT,
        *ON_CPU,
        "train_test_split=trainval",
        cache,
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        *(f"{part}_logs=[{','.join(index[f'{part}_logs'])}]" for part in ("train", "val")),
        f"trainer.params.max_epochs={EPOCHS}",
        "trainer.params.gradient_clip_val=1.0",
        "trainer.params.strategy=ddp",  # which fails where a trained parameter gets no gradient
        f"+trainer.params.devices={RANKS}",
        "+trainer.params.enable_progress_bar=false",
        "dataloader.params.batch_size=2",
        "agent.ema.decay=0.9",
        "agent.checkpoint.every_steps=2",
        "agent.resume=auto",
    ]
    return Observed(runners, RANKS, arguments)


def test_a_killed_rank(two_ranks: Observed, runners: Runners) -> None:
    whole = two_ranks.train("whole")
    assert "no run to go on with" in two_ranks.output
    assert len({final(notes)["weights"] for notes in whole}) == 1, "both ranks hold the same weights"
    for epoch in range(EPOCHS):
        steps = slice(PER_EPOCH * epoch, PER_EPOCH * (epoch + 1))
        seen = [Counter(token for batch in batches(notes)[steps] for token in batch["tokens"]) for notes in whole]
        assert len(seen[0] + seen[1]) == SCENES
        assert (seen[0] + seen[1]).total() == SCENES, "every scene once: 14 are a multiple of two ranks"
        assert not set(seen[0]) & set(seen[1])
    assert batches(whole[0])[:PER_EPOCH] != batches(whole[0])[PER_EPOCH:]
    orders = [[batch["tokens"] for batch in batches(whole[0])[start : start + PER_EPOCH]] for start in (0, PER_EPOCH)]
    assert orders[0] != orders[1], "another order in every epoch"

    # In the fourth batch of the second process, so the file of the second step is the latest.
    killed = two_ranks.train("killed", signal="1:4:SIGKILL")
    assert len(batches(killed[1])) == 4
    (last,) = (runners.experiments / "killed").rglob("last.ckpt")
    state = torch.load(last, weights_only=True)["navsim_recogdrive"]["resume"]
    assert (state["epoch"], state["batches"], len(state["random"])) == (0, 2, RANKS)

    resumed = two_ranks.train("killed")
    assert "Resuming" in two_ranks.output
    assert "epoch 0, after 2 of its 4 batches (step 2)" in two_ranks.output
    for rank in range(RANKS):
        assert batches(resumed[rank]) == batches(whole[rank])[2:], "the scenes and losses to the last bit"
        done = batches(killed[rank])
        assert done == batches(whole[rank])[: len(done)]
        assert final(resumed[rank]) == final(whole[rank])
    averages = [
        torch.load(next((runners.experiments / name).rglob("last.ckpt")), weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    ]
    for name, value in averages[0].items():
        assert torch.equal(averages[1][name], value), name
