"""Many questions at once: a bounded number in flight, every answer on disk before the next is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navsim_recogdrive.pretraining.labelling.answer_log import AnswerLog, Usage
from navsim_recogdrive.pretraining.labelling.asked_scenes import AskedScene
from navsim_recogdrive.pretraining.labelling.endpoint import Endpoint, LabellingError, Reply
from navsim_recogdrive.pretraining.labelling.images import DataUrls, grey_square
from navsim_recogdrive.pretraining.labelling.labeller import Labeller, NotAnswered, Outcome, Settings
from navsim_recogdrive.pretraining.labelling.report import Tally
from navsim_recogdrive.pretraining.labelling.request import Request
from navsim_recogdrive.pretraining.labelling.templates import FilledFamily
from navsim_recogdrive.pretraining.records import SceneRecord

if TYPE_CHECKING:
    from navsim_recogdrive.pretraining.labelling.client import ChatClient

HOPELESS = 20
"""If so many questions fail before one is answered, the settings are wrong, not the questions."""


@dataclass(frozen=True)
class Servers:
    """Who is asked.

    Attributes:
        main: generates and refines.
        judge: judges; may be the same.
    """

    main: Endpoint
    judge: Endpoint


@dataclass
class Run:
    """What a run has done so far; kept up to date, so that it can be shown however the run ends.

    Attributes:
        tally: of the questions that are done.
        usage: of the requests of this run, by model.
        found: requests that an earlier run had asked.
    """

    tally: Tally = field(default_factory=Tally)
    usage: dict[str, Usage] = field(default_factory=dict)
    found: int = 0


def jobs(labeller: Labeller, scenes: Iterator[AskedScene], tally: Tally) -> Iterator[tuple[SceneRecord, FilledFamily]]:
    """All questions about all scenes, in order; counts scenes, and families that do not apply, in ``tally``."""
    for scene, questions in scenes:
        tally.scenes += 1
        for name, filled in zip(labeller.templates.families, questions, strict=True):
            if filled is None:
                tally.skip(name)
            else:
                yield scene, filled


async def label_scenes(
    labeller: Labeller,
    scenes: Iterator[AskedScene],
    servers: Servers,
    log: AnswerLog,
    data_root: Path,
    concurrency: int,
    run: Run,
    progress: Callable[[Run], None] = lambda run: None,
) -> None:
    """Ask all questions that have no answer yet.

    Both servers are tried before the first scene is read.

    Args:
        labeller: what is asked.
        scenes: about which, with their questions; taken as they are needed.
        servers: whom.
        log: where answers go, and where those of earlier runs are found.
        data_root: what paths of images are relative to.
        concurrency: questions in flight.
        run: what was done; filled in.
        progress: called after each question.

    Raises:
        LabellingError: if a server cannot be used or does not come back, the disk is full, or every question fails; all
            that was answered is in the log.
        ValueError: for a concurrency below one.
    """
    if concurrency < 1:
        raise ValueError(f"the concurrency must be at least 1, found {concurrency}")
    settings = labeller.settings
    main, judge = _clients(servers, settings)
    async with main, judge:
        await _probe(main, judge, settings)

        async def ask(request: Request) -> Reply:
            found = log.find(request)
            if found is not None:
                run.found += 1
                return found
            url = None if request.image is None else await images.get(request.image, request.scaling)
            client = judge if request.step == "judging" else main
            reply = await client.ask(
                request.model,
                request.messages(url),
                max_tokens=request.max_tokens,
                temperature=request.temperature,
            )
            log.add(request, reply)
            run.usage.setdefault(request.model, Usage()).add(reply)
            return reply

        images = DataUrls(data_root)
        waiting = jobs(labeller, scenes, run.tally)

        async def work() -> None:
            for scene, filled in waiting:  # shared: each question is taken by one worker
                outcome = await labeller.label(scene, filled, ask)
                run.tally.add(outcome)
                progress(run)
                if not run.usage and not run.found and run.tally.unanswered >= HOPELESS:
                    raise LabellingError(
                        f"the first {HOPELESS} questions all failed, the last one: {outcome.verdict}: {outcome.detail}"
                    )
                await asyncio.sleep(0)  # where all is found in the log nothing else would let others run, or Ctrl-C

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def check_servers(servers: Servers, settings: Settings) -> None:
    """Try both servers with a small image.

    Raises:
        ServerUnavailable: if one does not answer.
        ServerRefuses: if one refuses key, model or image.
    """
    main, judge = _clients(servers, settings)
    async with main, judge:
        await _probe(main, judge, settings)


def answered(labeller: Labeller, scenes: Iterator[AskedScene], log: AnswerLog, tally: Tally) -> Iterator[Outcome]:
    """What the log says about all questions about all scenes, in order, asking nobody; counted in ``tally``."""

    async def look_up(request: Request) -> Reply:
        reply = log.find(request)
        if reply is None:
            raise NotAnswered
        return reply

    for scene, filled in jobs(labeller, scenes, tally):
        outcome = _finish(labeller.label(scene, filled, look_up))
        tally.add(outcome)
        yield outcome


def _clients(servers: Servers, settings: Settings) -> tuple[ChatClient, ChatClient]:
    from navsim_recogdrive.pretraining.labelling.client import ChatClient  # all but asking works without its libraries

    return ChatClient(servers.main, settings.extra), ChatClient(servers.judge, settings.judge_extra)


async def _probe(main: ChatClient, judge: ChatClient, settings: Settings) -> None:
    await main.probe(settings.model, _probe_turns())
    await judge.probe(settings.judge_model, _probe_turns())


def _finish(coroutine: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Run a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        outcome: Outcome = done.value
        return outcome
    raise AssertionError("looking up an answer waits for nothing")


def _probe_turns() -> list[dict[str, Any]]:
    content = [
        {"type": "image_url", "image_url": {"url": grey_square()}},
        {"type": "text", "text": "Which colour is this? One word."},
    ]
    return [{"role": "user", "content": content}]
