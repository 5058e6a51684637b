"""One of two processes that hold halves of a model (FSDP2 on gloo): the first has a batch with images, the other none.

    python -m torch.distributed.run --nproc_per_node=2 sharded_rank.py VLM

Prints the loss and the largest relative difference of a gradient from the whole model's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from navsim_recogdrive.pretraining.finetuning.model import TrainedInternVL, build_trained_model
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings
from navsim_recogdrive.vlm.architecture import read_architecture

CONTEXT = 256 + 24


def model_of(folder: Path) -> TrainedInternVL:
    settings = FinetuneSettings(str(folder), "", Path(), precision="float32", drop_path=0.0)
    architecture: Any = read_architecture(folder)
    return build_trained_model(folder, architecture, CONTEXT, settings).train()


def batch_of(rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(0, 256, (2, 12), generator=generator)
    labels = torch.where(torch.arange(12) < 6, -100, ids)
    if rank:
        return {"input_ids": ids, "labels": labels}
    image = torch.full((2, 4), CONTEXT)
    return {
        "input_ids": torch.cat([image, ids], 1),
        "labels": torch.cat([torch.full_like(image, -100), labels], 1),
        "tiles": torch.randint(0, 256, (2, 56, 56, 3), generator=generator, dtype=torch.uint8),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, taught = dist.get_rank(), torch.tensor(24)
    whole = model_of(folder)
    expected = 0.0
    for one in range(2):
        loss = whole(**batch_of(one), num_items_in_batch=taught)["loss"]
        loss.backward()
        expected += loss.item()

    model = model_of(folder)
    mesh = init_device_mesh("cpu", (2,))
    for layer in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layer):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(**batch_of(rank), num_items_in_batch=taught)["loss"]
    (2 * loss).backward()  # gradients are averaged over the processes
    total = loss.detach().clone()
    dist.all_reduce(total)
    worst = 0.0
    for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        gradient: Any = parameter.grad
        assert gradient is not None, name
        assert other.grad is not None, name
        difference = (gradient.full_tensor() - other.grad).abs().max() / other.grad.abs().max().clamp(min=1e-12)
        worst = max(worst, float(difference))
    if rank == 0:
        print(f"loss {total.item():.6f} expected {expected:.6f} worst {worst:.2e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
