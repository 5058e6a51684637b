"""The table of ``benchmarks/rl_world.sh``: scores on held-out scenes after imitation and after reinforcement learning.

    python benchmarks/rl_table.py FOLDER

Per version of NAVSIM and seed: the mean score of all test scenes after imitation learning (IL), after reinforcement
learning (RL), and the difference; then mean and standard deviation over the seeds, of the sub-scores too. The score of
v2.x is EPDMS; ``one frame`` is the same without the comfort over two frames: what the reward sees. Last the difference
averaged over the seeds with its 95 % interval over drives (bootstrap): scenes of one drive are alike.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

MULTIPLIED = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
)
WEIGHTS = {"ego_progress": 5, "time_to_collision_within_bound": 5, "lane_keeping": 2, "history_comfort": 2}
TWO_FRAMES = "two_frame_extended_comfort"


def scene_means(path: Path) -> pd.Series:
    """Mean of every score and sub-score over the scored scenes of a CSV that NAVSIM wrote.

    Raises:
        ValueError: if a scene could not be scored.
    """
    table = pd.read_csv(path, index_col=0)
    scenes = table[~table["token"].astype(str).str.startswith("average")]
    if not scenes["valid"].astype(bool).all():
        raise ValueError(f"{path}: {(~scenes['valid'].astype(bool)).sum()} of {len(scenes)} scenes were not scored")
    scores = scenes.drop(columns=["token", "valid"]).astype(float)
    if TWO_FRAMES in scores:
        weighted = sum(weight * scores[name] for name, weight in WEIGHTS.items()) / sum(WEIGHTS.values())
        scores["one frame"] = scores[list(MULTIPLIED)].prod(axis=1) * weighted
    means: pd.Series = scores.mean()
    means["scenes"] = len(scores)
    return means


def read(folder: Path) -> pd.DataFrame:
    """Columns (IL, name) and (RL, name), one row per seed for which both are there."""
    rows = {}
    for seed in sorted(folder.glob("seed_*")):
        files = {kind: seed / f"score_{kind.lower()}.csv" for kind in ("IL", "RL")}
        if all(file.is_file() for file in files.values()):
            rows[seed.name.removeprefix("seed_")] = pd.concat({kind: scene_means(file) for kind, file in files.items()})
    return pd.DataFrame(rows).T


def drives(folder: Path) -> dict[str, str]:
    """The drive of each test scene by token, from the folders of cached hidden states (DRIVE/TOKEN)."""
    return {scene.name: scene.parent.name for scene in (folder / "hidden_states_test").glob("*/*") if scene.is_dir()}


def gain_over_drives(folder: Path, drive_of: dict[str, str]) -> str:
    """Mean of RL - IL over seeds and scenes, with the percentile interval of 10,000 draws of whole drives."""
    gains = []
    for seed in sorted(file.parent for file in folder.glob("seed_*/score_rl.csv")):
        scores = [pd.read_csv(seed / f"score_{kind}.csv", index_col="token")["score"] for kind in ("il", "rl")]
        gains.append((scores[1] - scores[0]).loc[list(drive_of)])
    gain = pd.concat(gains, axis=1).mean(axis=1)
    per_drive = gain.groupby(gain.index.map(drive_of)).agg(["sum", "count"]).to_numpy()
    drawn = np.random.default_rng(0).integers(len(per_drive), size=(10_000, len(per_drive)))
    totals = per_drive[drawn].sum(axis=1)
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}] over {len(per_drive)} drives"


def print_version(name: str, seeds: pd.DataFrame) -> None:
    """Two tables in Markdown."""
    change = seeds["RL"] - seeds["IL"]
    print(f"\nNAVSIM {name}, {seeds['IL', 'scenes'].iloc[0]:.0f} test scenes\n")
    print("| seed | IL | RL | RL - IL |\n|---|---|---|---|")
    for seed in seeds.index:
        print(f"| {seed} | {seeds['IL', 'score'][seed]:.3f} | {seeds['RL', 'score'][seed]:.3f} "
              f"| {change['score'][seed]:+.3f} |")  # fmt: skip
    print(f"| mean +- sd | {spread(seeds['IL', 'score'])} | {spread(seeds['RL', 'score'])} "
          f"| {spread(change['score'], sign='+')} |\n")  # fmt: skip
    print("| mean +- sd over the seeds | IL | RL | RL - IL |\n|---|---|---|---|")
    for part in change.columns.drop(["score", "scenes"]):
        print(f"| {part.replace('_', ' ')} | {spread(seeds['IL', part])} | {spread(seeds['RL', part])} "
              f"| {spread(change[part], sign='+')} |")  # fmt: skip


def spread(values: pd.Series, sign: str = "") -> str:
    """Mean and, of two or more, standard deviation."""
    deviation = f" +- {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.3f}{deviation}"


def main(arguments: list[str]) -> int:
    """Print the tables of all versions that are there."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    for folder in sorted(Path(arguments[0]).glob("v[12]")):
        seeds = read(folder)
        if len(seeds):
            print_version(folder.name, seeds)
            drive_of = drives(Path(arguments[0]))
            if drive_of:
                print(f"\nRL - IL: {gain_over_drives(folder, drive_of)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
