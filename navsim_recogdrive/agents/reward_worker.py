"""The process that scores scenes for :class:`navsim_recogdrive.agents.reward_pool.RewardPool`.

It is not made by ``multiprocessing``: a spawned process would first import the training script with all it needs, a
forked one would take over CUDA and threads. It ends as soon as its connection does, whatever ends the process at the
other side.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from multiprocessing.connection import Connection


def main(descriptor: int) -> None:
    """Receive settings and jobs, send ``(job number, SceneScores)``.

    The first message out is ``None`` once jobs can be scored, or a str that says why none can.

    Args:
        descriptor: file descriptor of the socket to the pool.
    """
    # Ctrl-C reaches every process of the terminal, a cluster's signals every process of the job; the pool decides what
    # they mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    # From the start and without a break, so that the pool can always send.
    threading.Thread(target=_receive, args=(connection, received), daemon=True).start()
    try:
        # Not before the thread runs: this imports NAVSIM.
        from navsim_recogdrive.agents.scene_scoring import SceneScoring

        scoring = SceneScoring(pickle.loads(received.get()))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    try:
        connection.send(None)
        while True:
            number, token, trajectories = pickle.loads(received.get())
            connection.send((number, scoring.score(token, trajectories)))
    except BrokenPipeError:
        return  # the pool is gone


def _receive(connection: Connection, received: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            received.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)  # the pool is gone, so nobody waits for the scene that may be in work
