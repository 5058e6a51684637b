"""What the pages say can be done: marks, syntax, modules and their options, scripts, settings, paths, links."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pages import OTHER_SHELLS, PAGES, REPOSITORY, Command, blocks_of, commands_of, inline_code, shell_blocks

BLOCKS = shell_blocks()
COMMANDS = [(block, command) for block in BLOCKS for command in block.commands]

# Keys of a checkpoint's state dict, which begin like settings.
NOT_SETTINGS = ("action_head",)

HELP = """
import contextlib, io, json, re, runpy, sys
def help_of(*words):
    text, sys.argv = io.StringIO(), [*words, "--help"]
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_module(words[0], run_name="__main__")
    return text.getvalue()
found = {}
for module, first in json.load(sys.stdin):
    key = module
    found[key] = found.get(key) or help_of(module)
    if re.fullmatch("[a-z][a-z-]*", first):  # a subcommand has a help of its own
        key = f"{module} {first}"
        found[key] = found.get(key) or help_of(module, first)
print(json.dumps(found))
"""


def ids(items: list[object]) -> list[str]:
    return [getattr(item, "where", None) or str(item.relative_to(REPOSITORY)) for item in items]  # type: ignore[attr-defined]


def test_reading_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run: world A=1 -->\n```bash\nB=2 bash x.sh --long \\\n  'a b'  # said\nfirst && second >out 2>&1\n```\n"
        "text `code` more\n\n```bash\nthird\n```\n"
    )
    marked, unmarked = blocks_of(page)
    assert (marked.line, marked.mark, marked.note) == (2, "run", "world A=1")
    assert unmarked.mark is None
    assert [command.words for command in marked.commands] == [
        ("bash", "x.sh", "--long", "a b"),
        ("first",),
        ("second",),
    ]
    assert marked.commands[0].variables == ("B=2",)
    assert inline_code(page) == ["code"]


def test_every_shell_block_is_marked() -> None:
    assert len(BLOCKS) > 20
    unmarked = [block.where for block in BLOCKS if block.mark is None]
    assert not unmarked, f"'<!-- run: world -->' or '<!-- not run: REASON -->' must stand above {unmarked}"
    foreign = [block.where for block in BLOCKS if block.mark == "run" and block.note.split()[0] != "world"]
    assert not foreign, f"blocks run on the 'world' only: {foreign}"
    others = [block.where for page in PAGES for block in blocks_of(page) if block.language in OTHER_SHELLS]
    assert not others, f"shell blocks are ```bash: {others}"


@pytest.mark.parametrize("block", BLOCKS, ids=ids(BLOCKS))
def test_shell_syntax(block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block.where}: {done.stderr}"


def module_of(command: Command) -> tuple[str, list[str]] | None:
    """The package's module that a command runs, and the arguments after it."""
    if "-m" not in command.words[:3]:
        return None
    at = command.words.index("-m") + 1
    name = command.words[at]
    return (name, list(command.words[at + 1 :])) if name.startswith("navsim_recogdrive") else None


def test_modules_and_their_options() -> None:
    used = [(block, *found) for block, command in COMMANDS if (found := module_of(command))]
    spans = [
        commands_of(span)[0] for page in PAGES for span in inline_code(page) if span.startswith("python -m navsim_")
    ]
    used += [("a code span", *found) for span in spans if (found := module_of(span)) and "..." not in found[0]]
    assert len(used) > 15
    wanted = sorted({(module, arguments[0] if arguments else "") for _, module, arguments in used})
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    helps = json.loads(done.stdout)
    for where, module, arguments in used:
        text = helps.get(f"{module} {arguments[0]}" if arguments else "") or helps[module]
        assert "usage:" in text or "Hydra" in text, f"{module} --help says nothing"
        options = {re.match(r"\[?(--[\w-]+)", argument) for argument in arguments} - {None}
        for option in sorted({match[1] for match in options if match} - {"--help"}):
            assert re.search(rf"{option}\b(?!-)", text), f"{getattr(where, 'where', where)}: {module} has no {option}"


def script_of(command: Command) -> tuple[Path, list[str]] | None:
    for index, word in enumerate(command.words):
        if word.endswith(".sh") and word.startswith(("scripts/", "benchmarks/")):
            return REPOSITORY / word, list(command.words[index + 1 :])
    return None


def manual_of(script: Path, seen: frozenset[Path] = frozenset()) -> str:
    """A script's help, and that of the scripts that it refers to."""
    text = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True, check=True).stdout
    named = {
        path for name in re.findall(r"[\w/]+\.sh", text) for path in REPOSITORY.glob(f"scripts/**/{Path(name).name}")
    }
    for other in sorted(named - seen - {script}):
        text += manual_of(other, seen | named | {script})
    return text


def test_scripts_their_options_and_variables() -> None:
    used = [(block, command, *found) for block, command in COMMANDS if (found := script_of(command))]
    assert len(used) > 10
    manuals = {script: manual_of(script) for script in {script for _, _, script, _ in used}}
    for block, command, script, arguments in used:
        for variable in command.variables:
            name = variable.split("=")[0]
            assert re.search(rf"\b{name}\b", manuals[script]), f"{block.where}: {script.name} knows no {name}"
        before_rest = arguments[: arguments.index("--")] if "--" in arguments else arguments
        for option in (word for word in before_rest if word.startswith("--")):
            assert option == "--help" or option in manuals[script], f"{block.where}: {script.name} has no {option}"


@pytest.mark.navsim
def test_overrides_of_the_runners() -> None:
    """NAVSIM's own configs take every override; on v1.1 with the other names that the pages give."""
    import navsim.planning.script as script
    from hydra import compose, initialize_config_dir

    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    folder = Path(script.__file__).parent
    checked = 0
    for block, command in COMMANDS:
        (runner, *_) = [Path(word) for word in command.words if re.search(r"run_\w+\.py$", word)] or [None]
        if runner is None:
            continue
        start = next(index for index, word in enumerate(command.words) if word.endswith(runner.name)) + 1
        overrides = [word for word in command.words[start:] if "[@]" not in word]
        overrides = overrides[: overrides.index("--cfg")] if "--cfg" in overrides else overrides
        overrides = [re.sub(r"\$\{?\w+\}?", "VALUE", word) for word in overrides if not word.startswith("$")]
        name = runner.name
        if NAVSIM_MAJOR < 2:
            name = name.replace("run_pdm_score_one_stage", "run_pdm_score")
            if name == "run_metric_caching.py":
                overrides = [word.replace("metric_cache_path=", "cache.cache_path=") for word in overrides]
            overrides = [word for word in overrides if "reactive_synthetic" not in word]
        # navtrain and navtest list their scenes, which takes a while to read: they must be there, others stand in.
        for split, stands_in in (("navtrain", "trainval"), ("navtest", "test")):
            assert (folder / "config" / "common" / "train_test_split" / f"{split}.yaml").is_file()
            overrides = [
                word.replace(f"train_test_split={split}", f"train_test_split={stands_in}") for word in overrides
            ]
        if not any(word.startswith("train_test_split=") for word in overrides):
            overrides.append("train_test_split=test")  # it came from an array, as does the agent
        if not any(word.startswith("agent=") for word in overrides) and "metric_caching" not in name:
            overrides.append("agent=recogdrive_2b")
        source = (folder / name).read_text()
        path, config = (re.search(rf'{key} = "(.*)"', source)[1] for key in ("CONFIG_PATH", "CONFIG_NAME"))  # type: ignore[index]
        with initialize_config_dir(config_dir=str(folder / path), version_base=None):
            try:
                agent = compose(config_name=config, overrides=overrides).get("agent")
            except Exception as error:
                pytest.fail(f"{block.where}: {name}: {error}")
        wanted = [word for word in overrides if word.startswith("agent=")]
        if wanted:
            assert "navsim_recogdrive" in agent["_target_"], (block.where, wanted)
        checked += 1
    assert checked > 8


def known_settings() -> set[str]:
    spec = importlib.util.spec_from_file_location("write_options", REPOSITORY / "docs" / "tools" / "write_options.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    agents = (tool.CONFIGS / "agent").glob("*.yaml")
    names = {option.name for path in agents for option in tool.read_options(path)}
    for path in (tool.CONFIGS / "agent" / "planner").glob("*.yaml"):
        names |= {f"planner.{option.name}" for option in tool.read_options(path)}
    groups = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    return names | groups


@pytest.mark.parametrize("page", PAGES, ids=ids(list(PAGES)))
def test_settings_and_paths_that_text_names(page: Path) -> None:
    known = known_settings()
    for span in [*inline_code(page), *(block.text for block in blocks_of(page) if block.language == "bash")]:
        for name in re.findall(r"(?<![\w./])agent\.([a-z_]+(?:\.[a-z_]+)*)", span):
            if name.split(".")[0] not in NOT_SETTINGS:
                assert name in known, f"{page.name}: there is no setting agent.{name}"
        roots = "scripts|benchmarks|tests|docs|requirements|navsim_recogdrive|hydra_plugins"
        for path in re.findall(rf"(?<![\w./$-])((?:{roots})/[\w./*-]*[\w*])", span):
            assert list(REPOSITORY.glob(path)), f"{page.name}: there is no {path}"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub and MyST make it."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=ids(list(PAGES)))
def test_links(page: Path) -> None:
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            parts = urlsplit(target)
            assert parts.scheme == "https", f"{page.name}: {target}"
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), f"{page.name}: {target}"
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target} does not exist"
        assert linked.is_relative_to(REPOSITORY), f"{page.name}: {target} is outside of the repository"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {linked.name} has no heading #{anchor}"
