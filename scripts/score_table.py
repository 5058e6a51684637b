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


def main(arguments: list[str]) -> None:
    """Means over the scored scenes, one row per file."""
    rows = {}
    for argument in arguments:
        name, separator, path = argument.partition("=")
        if not separator:
            sys.exit(f"expected NAME=FILE, found {argument!r}")
        table = pd.read_csv(path)
        scenes = table[~table["token"].astype(str).str.startswith("average")]
        row = {short: scenes[column].mean() for column, short in SHORT.items() if column in scenes}
        rows[name] = {"scenes": len(scenes), **row}
    print(pd.DataFrame(rows).T.to_string(formatters={"scenes": "{:.0f}".format}, float_format="{:.4f}".format))


if __name__ == "__main__":
    main(sys.argv[1:])
