#!/usr/bin/env python3
"""Print one table from the score CSVs that NAVSIM's scoring runners write: score_table.py NAME=FILE [NAME=FILE ...]."""

from __future__ import annotations

import sys

import pandas as pd

SHORT = {
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "comfort": "C",
    "lane_keeping": "LK",
    "history_comfort": "HC",
    "two_frame_extended_comfort": "EC",
    "score": "score",
}

TWO_STAGES = "extended_pdm_score_"


def main(arguments: list[str]) -> None:
    """Means over the scored scenes, one row per file; of two stages, NAVSIM's own sums."""
    rows = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            sys.exit(f"expected NAME=FILE, found {argument!r}")
        table = pd.read_csv(path)
        tokens = table["token"].astype(str)
        scenes = table[~tokens.str.startswith(("average", TWO_STAGES))]
        row = {short: scenes[column].mean() for column, short in SHORT.items() if column in scenes}
        for summary, short in (("stage_one", "stage 1"), ("stage_two", "stage 2"), ("combined", "score")):
            found = table.loc[tokens == f"{TWO_STAGES}{summary}", "score"]
            row |= {short: found.item()} if len(found) else {}
        rows[name] = {"scenes": len(scenes), **row}
        failed = int((~scenes["valid"].astype(bool)).sum())
        if failed:
            print(f"{name}: {failed} of {len(scenes)} scenes failed, see the runner's log", file=sys.stderr)
    print(pd.DataFrame(rows).T.to_string(formatters={"scenes": "{:.0f}".format}, float_format="{:.4f}".format))


if __name__ == "__main__":
    main(sys.argv[1:])
