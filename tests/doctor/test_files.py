"""VLM, planner weights and caches: how what their steps answer is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import context, hydra_answer, only

from navsim_recogdrive.doctor.checks import checkpoints, feature_cache, metric_cache, vlm

VLM = {"vlm_type": "internvl", "hidden_size": 1536, "hidden_length": 2800, "parameters": 1.86e9, "layers": 28}
PLANNER = {"hidden_state_size": 1536, "method": "ddim", "num_heads": 8, "num_layers": 16, "output_size": 512}
LARGE = {**PLANNER, "hidden_state_size": 3584, "num_heads": 32, "output_size": 1536}
CACHE = {
    "kind": "hidden states",
    "logs": 20,
    "looked_at": 8,
    "scenes": 700,
    "incomplete": 0,
    "evaluation_only": 0,
    "loose": [],
    "broken": 0,
    "findings": [],
    "states": [["bf16", 2800, 1536, 700]],
    "identity": "vlm ReCogDrive-VLM-2B",
    "other_vlm": [],
}


@pytest.mark.parametrize(
    ("stage", "agent", "statuses"),
    [
        (None, {}, ["warning"]),
        ("cache", {}, ["error"]),
        ("train", {}, []),
        ("train", {"cache_hidden_state": False}, ["error"]),
        ("evaluate", {}, ["error"]),
        ("evaluate", {"hidden_state_cache": "/cache"}, []),
        ("submit", {"hidden_state_cache": "/cache", "hidden_state_cache_miss": "vlm"}, ["error"]),
    ],
)
def test_who_needs_a_vlm(stage: str | None, agent: dict[str, Any], statuses: list[str]) -> None:
    found = vlm.check(context(None, {"hydra": hydra_answer(**agent)}, stage=stage))
    assert [one.status for one in found] == statuses


def test_a_vlm_that_fits() -> None:
    found = only(vlm.check(context(None, {"vlm": VLM, "hydra": hydra_answer()}, vlm="/vlm")))
    assert found.status == "ok"
    assert "1.86 B parameters (3.72 GB), hidden states of 2800 x 1536" in found.found


def test_a_vlm_of_another_size() -> None:
    steps = {"vlm": {**VLM, "hidden_size": 3584}, "hydra": hydra_answer()}
    found = only(vlm.check(context(None, steps, vlm="/vlm")))
    assert (found.status, found.fix) == ("error", "--agent recogdrive_8b (agent=recogdrive_8b)")


def test_a_vlm_that_cannot_be_used(tmp_path: Path) -> None:
    broken = {"vlm": "VLMCheckpointError: model.safetensors is truncated"}
    assert only(vlm.check(context(None, broken, vlm=str(tmp_path)))).status == "error"
    absent = {"vlm": "VLMCheckpointError: the hub repository 'o/n' is not in the local cache /x"}
    found = only(vlm.check(context(None, absent, vlm="o/n")))
    assert (found.status, found.fix) == ("warning", "hf download o/n")


@pytest.mark.parametrize(("stage", "statuses"), [(None, ["warning"]), ("rl", ["error"]), ("train", [])])
def test_who_needs_a_checkpoint(stage: str | None, statuses: list[str]) -> None:
    found = checkpoints.check(context(None, {"hydra": hydra_answer()}, stage=stage))
    assert [one.status for one in found] == statuses


def test_the_text_planner_has_no_checkpoint() -> None:
    answer = hydra_answer()
    del answer["agent"]["planner"]
    assert list(checkpoints.check(context(None, {"hydra": answer}, stage="evaluate"))) == []


def test_checkpoints_of_overrides_are_looked_at(tmp_path: Path) -> None:
    overrides = ("agent.reference_policy_checkpoint='/gone/a=1.ckpt'", "agent.checkpoint_path=null", "agent.x=1")
    one = context(None, {"hydra": hydra_answer()}, overrides=overrides, stage="rl")
    found = only(checkpoints.check(one))
    assert (found.status, found.found) == ("error", "no file /gone/a=1.ckpt")


@pytest.mark.parametrize(
    ("answer", "status", "fix"),
    [
        ({"planner": PLANNER, "differing": []}, "ok", ""),
        (
            {"planner": LARGE, "differing": ["hidden_state_size", "num_heads", "output_size"]},
            "error",
            "--agent recogdrive_8b agent/planner=dit_large",
        ),
        ({"planner": {**PLANNER, "method": "flow"}, "differing": ["method"]}, "error", "agent.planner.method=flow"),
        ({"planner": PLANNER, "differing": [], "other_vlm": "trained with another VLM"}, "error", "--vlm FOLDER of"),
        ("PlannerCheckpointError: was its download cut short?", "error", "name another file"),
    ],
)
def test_checkpoints_against_the_agent(tmp_path: Path, answer: Any, status: str, fix: str) -> None:
    file = tmp_path / "planner.ckpt"
    file.touch()
    whole = {"other_vlm": None, "remembered": None, **answer} if isinstance(answer, dict) else answer
    steps = {f"checkpoint {file}": whole, "settings": {"planner": PLANNER}, "hydra": hydra_answer()}
    found = only(checkpoints.check(context(None, steps, checkpoint=file)))
    assert found.status == status
    assert found.fix.startswith(fix)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ({}, "ok", "700 whole scenes in 8 of 20 logs (700 of 2800 x 1536 in bf16)"),
        ({"kind": None}, "error", "holds no cached scene"),
        ({"kind": "image tiles"}, "error", "holds image tiles, the agent reads hidden states"),
        ({"states": [["bf16", 2800, 3584, 700]]}, "error", "hidden states of size 3584"),
        (
            {"other_vlm": ["model", "prompt"]},
            "error",
            "made with another VLM or prompt than the configured one: model, prompt",
        ),
        (
            {"broken": 2, "findings": ["a.gz is cut off"]},
            "error",
            "2 files in the 8 logs looked at must not be used: a.gz",
        ),
        ({"loose": ["/cache/x.partial"]}, "error", "lie in the cache's root: /cache/x.partial"),
        ({"incomplete": 3}, "warning", "3 scenes in 8 of 20 logs lack files"),
    ],
)
def test_feature_caches(tmp_path: Path, answer: dict[str, Any], status: str, said: str) -> None:
    steps = {"cache": {**CACHE, **answer}, "hydra": hydra_answer()}
    found = only(feature_cache.check(context(None, steps, cache=tmp_path, stage="train")))
    assert (found.status, said in found.found) == (status, True), found


def test_absent_feature_caches(tmp_path: Path) -> None:
    steps = {"hydra": hydra_answer()}
    assert only(feature_cache.check(context(None, steps, stage="train"))).status == "error"
    assert list(feature_cache.check(context(None, steps, stage="evaluate"))) == []
    assert only(feature_cache.check(context(None, steps, stage="train", cache=tmp_path / "no"))).status == "error"
    assert only(feature_cache.check(context(None, steps, stage="cache", cache=tmp_path / "no"))).status == "ok"
    (tmp_path / "file").touch()
    found = only(feature_cache.check(context(None, steps, stage="cache", cache=tmp_path / "file")))
    assert "is not a folder" in found.found


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ({"tokens": 900, "looked_for": 200, "missing": 0}, "ok", "900 scenes"),
        ({"tokens": 900, "looked_for": 200, "missing": 7}, "error", "7 of 200 files looked for"),
        (
            "UnusableMetricCache: it does not fit the installed NAVSIM v2.x",
            "error",
            "does not fit the installed NAVSIM",
        ),
        (None, "error", "cannot be read without NAVSIM"),
    ],
)
def test_metric_caches(tmp_path: Path, answer: Any, status: str, said: str) -> None:
    steps = {} if answer is None else {"metric_cache": answer}
    found = only(metric_cache.check(context(None, steps, metric_cache=tmp_path, stage="rl")))
    assert (found.status, said in found.found) == (status, True), found


@pytest.mark.parametrize(("stage", "status"), [(None, "warning"), ("evaluate", "error")])
def test_absent_metric_caches(stage: str | None, status: str) -> None:
    assert only(metric_cache.check(context(stage=stage))).status == status
