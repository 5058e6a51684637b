"""Step ``checkpoint FILE``: do planner weights fit the agent's planner and VLM; reads keys and shapes."""

from __future__ import annotations

from typing import Any

from navsim_recogdrive.doctor.isolated.settings import agent_settings, vlm_config
from navsim_recogdrive.planner.checkpoints import COMPARED, infer_planner_config
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm, read_remembered_vlm


def run(parameters: dict[str, Any], results: dict[str, Any], path: str) -> dict[str, Any]:
    """Compare a checkpoint with the agent's settings.

    Returns:
        ``planner`` (what its shapes tell), ``differing`` (fields in which the agent's planner differs), ``remembered``
        (the VLM it was trained with, one line, or ``None``), and ``other_vlm`` (why the configured VLM is not that
        one, or ``None``; only where the step ``vlm`` found one).

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if it cannot be read or holds no planner.
    """
    found = infer_planner_config(path)
    expected = (results.get("settings") or {}).get("planner")
    names = ["hidden_state_size", *COMPARED]
    # Flow matching stores no schedule, and only DDIM stores its steps: their lengths cannot be read off every file.
    if found.method == "flow" or (expected or {}).get("method") == "flow":
        names.remove("num_train_timesteps")
    if not found.method == (expected or {}).get("method") == "ddim":
        names.remove("num_inference_steps")
    planner = {name: getattr(found, name) for name in names}
    remembered = read_remembered_vlm(path)
    other_vlm = None
    if remembered is not None and "vlm" in results:
        try:
            check_remembered_vlm(path, SharedBackbone(vlm_config(agent_settings(parameters, results))).identity())
        except ValueError as error:
            other_vlm = str(error)
    return {
        "planner": planner,
        "differing": [] if expected is None else [name for name in planner if planner[name] != expected[name]],
        "remembered": None if remembered is None else remembered.describe(),
        "other_vlm": other_vlm,
    }
