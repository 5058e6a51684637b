"""The command line's options, and what they mean."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from navsim_recogdrive.pretraining.labelling.endpoint import NO_KEY, Endpoint
from navsim_recogdrive.pretraining.labelling.images import ImageScaling
from navsim_recogdrive.pretraining.labelling.labeller import Labeller, Settings
from navsim_recogdrive.pretraining.labelling.pipeline import Servers
from navsim_recogdrive.pretraining.labelling.report import Price
from navsim_recogdrive.pretraining.labelling.templates import Templates
from navsim_recogdrive.whole_numbers import whole_number_from


def parser() -> argparse.ArgumentParser:
    """The parser; ``command`` names what to do."""
    top = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.pretraining.labelling",
        description="Questions about logged scenes, answered, refined and judged by a VLM behind an OpenAI-compatible "
        "server. OUTPUT gets the samples, OUTPUT.answers.jsonl every answer as it arrives, OUTPUT.summary.json the "
        "statistics. The same command continues after an interruption and asks nothing twice.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask all that has no answer yet, then export")
    export = commands.add_parser("export", help="write the samples from the answers that are there; asks nobody")
    check = commands.add_parser("check", help="try the servers with a small image")
    show = commands.add_parser("show", help="print the first scenes' first requests; asks nobody")
    for command in (run, export, show):
        _add_scenes(command)
    for command in (run, export, show, check):
        _add_questions(command)
    for command in (run, export):
        command.add_argument("--output", type=Path, required=True, metavar="OUTPUT", help="the samples, JSONL")
        command.add_argument("--threshold", type=float, default=7.0, help="lowest score 0..10 that passes [7]")
        command.add_argument(
            "--workers",
            type=whole_number_from(1),
            default=os.cpu_count() or 1,
            metavar="N",
            help="processes that work out what is known of the scenes [all cores]",
        )
    for command in (show, check):
        command.set_defaults(threshold=7.0)
    for command in (run, check):
        _add_server(command)
    templates = commands.add_parser("templates", help="copy the built-in question templates to a folder, to be edited")
    templates.add_argument("folder", type=Path)
    commands.add_parser("placeholders", help="list the placeholders that question templates may use")
    return top


def labeller(options: argparse.Namespace) -> Labeller:
    """What is asked.

    Raises:
        ValueError: for numbers out of range or a missing model.
        TemplateError: for templates that cannot be used.
    """
    if not options.model:
        raise ValueError("no model: give --model or OPENAI_MODEL, the name that the server knows it by")
    families = options.families.split(",") if options.families else None
    settings = Settings(
        model=options.model,
        judge_model=options.judge_model or options.model,
        threshold=options.threshold,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        scaling=ImageScaling(options.image_side, options.image_quality),
        extra=options.extra,
        judge_extra=options.extra if options.judge_extra is None else options.judge_extra,
    )
    return Labeller(Templates.load(options.templates, families), settings)


def servers(options: argparse.Namespace) -> Servers:
    """Whom to ask. The key of one server is never sent to the other.

    Raises:
        ValueError: for an address or a key that cannot be.
    """
    if not options.base_url:
        raise ValueError("no server: give --base-url or OPENAI_BASE_URL, such as http://127.0.0.1:8000/v1")

    def endpoint(url: str, key: str | None) -> Endpoint:
        return Endpoint(url, (key or NO_KEY).strip(), options.timeout, options.attempts, options.patience)

    # No environment variable is a default of argparse: --help would show the key.
    main = endpoint(options.base_url, options.key or os.environ.get("OPENAI_API_KEY"))
    if options.judge_base_url in (None, options.base_url):
        return Servers(main, main)
    return Servers(main, endpoint(options.judge_base_url, options.judge_key or os.environ.get("JUDGE_API_KEY")))


def prices(options: argparse.Namespace) -> dict[str, Price]:
    """Of a million tokens, by model."""
    main = Price(options.price_in, options.price_out)
    judge = Price(
        options.price_in if options.judge_price_in is None else options.judge_price_in,
        options.price_out if options.judge_price_out is None else options.judge_price_out,
    )
    return {options.judge_model or options.model: judge, options.model: main}


def _add_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenes", type=Path, help="JSONL of scene records, from navsim_recogdrive.agents.qa_dataset --kind records"
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("OPENSCENE_DATA_ROOT"),
        help="what paths of images are relative to [OPENSCENE_DATA_ROOT]",
    )
    parser.add_argument("--limit-scenes", type=whole_number_from(1), metavar="N", help="only the first N scenes")


def _add_questions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=os.environ.get("OPENAI_MODEL"), help="the server's name of it [OPENAI_MODEL]"
    )
    parser.add_argument("--judge-model", help="who judges [the same]; another model judges more freely")
    parser.add_argument("--families", metavar="A,B", help="only these families of questions [all]")
    parser.add_argument(
        "--templates", type=Path, metavar="FOLDER", help="own question templates, over the built-in ones"
    )
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer [512]; more for models that think")
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="of the generation [0.7]; the other steps have 0"
    )
    parser.add_argument(
        "--image-side", type=int, default=1280, help="longest side of an image in pixels [1280]; 0: as it is"
    )
    parser.add_argument("--image-quality", type=int, default=90, help="of the JPEG that a smaller image becomes [90]")
    parser.add_argument(
        "--extra",
        type=_json_object,
        default={},
        metavar="JSON",
        help='further fields of every request, null leaves one out: {"max_completion_tokens": 512, "max_tokens": null}',
    )
    parser.add_argument("--judge-extra", type=_json_object, metavar="JSON", help="likewise to the judge [as --extra]")


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url", default=os.environ.get("OPENAI_BASE_URL"), help="http://HOST:PORT/v1 [OPENAI_BASE_URL]"
    )
    parser.add_argument("--key", help="[OPENAI_API_KEY, the better place: arguments can be seen by other users]")
    parser.add_argument("--judge-base-url", help="of the judge's server [the same]")
    parser.add_argument("--judge-key", help="of another judge's server [JUDGE_API_KEY]")
    parser.add_argument("--concurrency", type=int, default=32, help="questions in flight [32]")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer [120]")
    parser.add_argument(
        "--attempts", type=int, default=6, help="for a request that fails while the server answers others [6]"
    )
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds to wait for a server that answers nothing [600]"
    )
    for name, what in (("in", "requests"), ("out", "answers")):
        parser.add_argument(f"--price-{name}", type=float, default=0.0, help=f"of a million tokens of {what} [0]")
        parser.add_argument(f"--judge-price-{name}", type=float, help="likewise of the judge [the same]")


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, found {text}")
    return content
