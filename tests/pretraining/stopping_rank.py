"""One of two processes of a fine-tuning run, of which the second gets a signal in its third step.

    python -m torch.distributed.run --nproc_per_node=2 stopping_rank.py

Prints the step after which this process stops.
"""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from navsim_recogdrive.pretraining.finetuning.stopping import StopAtSignal


def main() -> None:
    dist.init_process_group("gloo")
    arguments: Any = SimpleNamespace(device=torch.device("cpu"))
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    state = SimpleNamespace(global_step=0, max_steps=6)
    stop = StopAtSignal()
    stop.on_train_begin(arguments, state, control)
    while not control.should_training_stop:
        state.global_step += 1
        if state.global_step == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        stop.on_step_end(arguments, state, control)
    print(f"rank {dist.get_rank()} saves and stops after step {state.global_step}: {control.should_save}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
