"""The table of benchmarks/rl_world.sh: means over scenes, seeds side by side, EPDMS without the two-frame comfort."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

TABLE = Path(__file__).parents[1] / "benchmarks" / "rl_table.py"


def write_v2(path: Path, progress: float, score: float) -> None:
    """Two scenes that comply with everything and one that leaves the drivable area, and NAVSIM's row of averages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scenes = {
        "token": ["a", "b", "c", "average_all_frames"],
        "valid": [True] * 4,
        "drivable_area_compliance": [1, 1, 0, 0.667],
        **{
            name: [1.0] * 4
            for name in ("no_at_fault_collisions", "driving_direction_compliance", "traffic_light_compliance")
        },
        "ego_progress": [progress] * 4,
        **{name: [1.0] * 4 for name in ("time_to_collision_within_bound", "lane_keeping", "history_comfort")},
        "two_frame_extended_comfort": [0.0, None, 1.0, 0.5],
        "score": [score, score, 0.0, 99.0],
    }
    pd.DataFrame(scenes).to_csv(path)


def table(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TABLE), str(folder)], capture_output=True, text=True)


def test_scores_of_seeds_and_their_spread(tmp_path: Path) -> None:
    for seed, (imitation, reinforcement) in enumerate([(0.3, 0.6), (0.6, 0.75)]):
        write_v2(tmp_path / "v2" / f"seed_{seed}" / "score_il.csv", 0.3, imitation)
        write_v2(tmp_path / "v2" / f"seed_{seed}" / "score_rl.csv", 1.0, reinforcement)
    write_v2(tmp_path / "v2" / "seed_2" / "score_il.csv", 0.3, 0.9)  # its reinforcement learning still runs
    for drive, token in (("long", "a"), ("long", "b"), ("short", "c")):
        (tmp_path / "hidden_states_test" / drive / token).mkdir(parents=True)
    done = table(tmp_path)
    assert done.returncode == 0, done.stderr
    # Scenes a and b gain (0.3 + 0.15) / 2, scene c nothing: between only the short drive and only the long one.
    assert "RL - IL: +0.150 [+0.000, +0.225] over 2 drives" in done.stdout
    assert "NAVSIM v2, 3 test scenes" in done.stdout
    assert "| 0 | 0.200 | 0.400 | +0.200 |" in done.stdout
    assert "| 1 | 0.400 | 0.500 | +0.100 |" in done.stdout
    assert "| mean +- sd | 0.300 +- 0.141 | 0.450 +- 0.071 | +0.150 +- 0.071 |" in done.stdout
    assert "| 2 |" not in done.stdout
    # (5 x 0.3 + 9) / 14 = 0.75 in two of three scenes, and 1 in two of three.
    assert "| one frame | 0.500 +- 0.000 | 0.667 +- 0.000 | +0.167 +- 0.000 |" in done.stdout


def test_scenes_that_were_not_scored(tmp_path: Path) -> None:
    path = tmp_path / "v1" / "seed_0" / "score_il.csv"
    for kind in ("il", "rl"):
        write_v2(path.with_name(f"score_{kind}.csv"), 1.0, 1.0)
    pd.read_csv(path, index_col=0).assign(valid=[True, False, True, False]).to_csv(path)
    done = table(tmp_path)
    assert done.returncode != 0
    assert "1 of 3 scenes were not scored" in done.stderr
