from __future__ import annotations

import gc
import logging
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from copying_vlm import ANSWER_POSES, answer_text, write_copying_vlm
from random_observation import random_observation
from tiny_sizes import TINY_TILE

from navsim_recogdrive.observation import InvalidObservation, Observation
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.text_policy import GenerationSettings, TextPolicy, TextPolicyConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> VLMConfig:
    folder, profile = write_copying_vlm(tmp_path_factory.mktemp("vlm") / "copier", answer_text(), TINY_TILE)
    return VLMConfig(path=str(folder), prompt_profile=str(profile), dtype="float32")


def _policy(config: VLMConfig) -> TextPolicy:
    return TextPolicy(SharedBackbone(config, "cpu", with_head=True))


def test_a_written_trajectory_becomes_the_plan(copier: VLMConfig) -> None:
    policy = _policy(copier)
    plans = policy.plan_batch([random_observation(seed, moving=bool(seed % 2)) for seed in range(3)])
    assert len(plans) == 3
    for plan in plans:
        np.testing.assert_array_equal(plan.poses, ANSWER_POSES.astype(np.float32))
    assert policy.counts.exact == policy.counts.answers == 3
    assert policy.counts.cut_off == 0


def test_a_mended_trajectory_is_counted_as_repaired(tmp_path: Path) -> None:
    answer = answer_text(ANSWER_POSES[:5]).removesuffix("].")
    folder, profile = write_copying_vlm(tmp_path / "copier", answer, TINY_TILE)
    policy = _policy(VLMConfig(path=str(folder), prompt_profile=str(profile), dtype="float32"))
    plan = policy.plan(random_observation(0, moving=False))
    np.testing.assert_allclose(plan.poses[:5], ANSWER_POSES[:5], atol=1e-6)
    assert (policy.counts.answers, policy.counts.repaired) == (1, 1)


def test_an_answer_without_a_plan_becomes_constant_velocity(tiny_vlm: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = VLMConfig(dtype="float32")
    policy = TextPolicy.from_pretrained(
        tiny_vlm, device="cpu", vlm_config=config, generation=GenerationSettings(max_new_tokens=4)
    )
    observations = [random_observation(seed, moving=bool(seed % 2)) for seed in range(2)]
    with caplog.at_level(logging.WARNING):
        plans = policy.plan_batch(observations)
    for observation, plan in zip(observations, plans, strict=True):
        expected = np.zeros((8, 3))
        expected[:, 0] = np.arange(1, 9) * 0.5 * np.hypot(*observation.velocity)
        np.testing.assert_allclose(plan.poses, expected, rtol=1e-6)
    assert (policy.counts.answers, policy.counts.fallback, policy.counts.cut_off) == (2, 2, 2)
    warnings = [record.message for record in caplog.records if "constant velocity instead" in record.message]
    assert len(warnings) == 2
    assert "0 poses found, at least 4 needed" in warnings[0]


def test_the_summary_is_logged_when_the_policy_goes(copier: VLMConfig, caplog: pytest.LogCaptureFixture) -> None:
    policy = _policy(copier)
    policy.plan(random_observation(0, moving=False))
    with caplog.at_level(logging.INFO):
        del policy
        gc.collect()
    expected = r"text planner: 1 answers, 1 exact, 0 repaired, 0 fallback \(constant velocity\), 0 cut off \[[a-z]{8}\]"
    lines = [record.message for record in caplog.records if record.message.startswith("text planner")]
    assert len(lines) == 1
    assert re.fullmatch(expected, lines[0])


def test_the_summaries_of_several_workers_survive_rays_deduplication(
    copier: VLMConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for worker in range(3):
            random.seed(0)  # as every worker does
            policy = _policy(copier)
            policy.counts.answers = policy.counts.exact = 100 + worker
            del policy
            gc.collect()
    lines = [record.message for record in caplog.records if record.message.startswith("text planner")]
    # Ray takes lines of several workers for one if they have the same words but for those with digits.
    assert len({" ".join(word for word in line.split() if not re.search(r"\d", word)) for line in lines}) == 3


def test_a_policy_that_answered_nothing_logs_nothing(copier: VLMConfig, caplog: pytest.LogCaptureFixture) -> None:
    policy = _policy(copier)
    with caplog.at_level(logging.INFO):
        del policy
        gc.collect()
    assert "text planner" not in caplog.text


def test_the_summary_is_logged_when_the_process_ends() -> None:
    script = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from navsim_recogdrive.policy.text_policy import TextPolicy\n"
        "from navsim_recogdrive.policy.backbones import SharedBackbone\n"
        "from navsim_recogdrive.policy.configuration import VLMConfig\n"
        "policy = TextPolicy(SharedBackbone(VLMConfig(), 'cpu', with_head=True))\n"
        "policy.counts.answers = policy.counts.exact = 812\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "text planner: 812 answers, 812 exact" in done.stderr


def test_too_few_tokens_for_an_answer_are_refused_at_the_start(tiny_vlm: Path) -> None:
    def policy(max_new_tokens: int) -> TextPolicy:
        return TextPolicy.from_pretrained(
            tiny_vlm,
            device="cpu",
            vlm_config=VLMConfig(dtype="float32"),
            generation=GenerationSettings(max_new_tokens=max_new_tokens),
        )

    with pytest.raises(InvalidSetting, match=r"max_new_tokens=184 would cut answers off.*at least 185"):
        policy(184).load()
    policy(185).load()
    policy(GenerationSettings().max_new_tokens).load()


def test_missing_image(copier: VLMConfig) -> None:
    observation = random_observation(0, moving=False)
    with pytest.raises(InvalidObservation, match="front_image is None"):
        _policy(copier).plan(Observation(None, observation.past_poses, np.zeros(2), np.zeros(2), np.eye(4)[0]))


def test_settings_are_checked(tiny_vlm: Path) -> None:
    config = TextPolicyConfig.from_mapping({"vlm": {"path": "x"}, "cam_type": "multi", "generation": {}})
    assert config.vlm == VLMConfig(path="x", cam_type="multi")
    assert config.generation == GenerationSettings(256)
    with pytest.raises(InvalidSetting, match="unknown setting.s. beams in 'generation'; it has: max_new_tokens"):
        TextPolicyConfig.from_mapping({"generation": {"beams": 2}})
    with pytest.raises(InvalidSetting, match="unknown setting.s. planner in 'agent'"):
        TextPolicyConfig.from_mapping({"planner": {}})
    for wrong in (0, 1.5, True, "many"):
        with pytest.raises(InvalidSetting, match=r"generation.max_new_tokens must be a whole number"):
            GenerationSettings(wrong)  # type: ignore[arg-type]
    TextPolicyConfig(VLMConfig(path=str(tiny_vlm)), hidden_size=32).check_vlm()
    TextPolicyConfig(VLMConfig(path=str(tiny_vlm))).check_vlm()
    with pytest.raises(InvalidSetting, match="has hidden size 32, this agent expects 1536: set agent.hidden_size=null"):
        TextPolicyConfig(VLMConfig(path=str(tiny_vlm)), hidden_size=1536).check_vlm()
