"""Score CSVs as NAVSIM's three scoring scripts write them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

V1 = (
    *("no_at_fault_collisions", "drivable_area_compliance", "ego_progress", "time_to_collision_within_bound"),
    *("comfort", "driving_direction_compliance", "score"),
)
V2 = (
    *("no_at_fault_collisions", "drivable_area_compliance", "driving_direction_compliance"),
    *("traffic_light_compliance", "ego_progress", "time_to_collision_within_bound", "lane_keeping"),
    *("history_comfort", "two_frame_extended_comfort", "score"),
)
SHORT = {
    "NC": "no_at_fault_collisions",
    "DAC": "drivable_area_compliance",
    "DDC": "driving_direction_compliance",
    "TLC": "traffic_light_compliance",
    "EP": "ego_progress",
    "TTC": "time_to_collision_within_bound",
    "C": "comfort",
    "LK": "lane_keeping",
    "HC": "history_comfort",
    "EC": "two_frame_extended_comfort",
    "score": "score",
}


def write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "token", "valid", *columns])
        for index, row in enumerate(rows):
            writer.writerow([index, row["token"], row.get("valid", True), *(row.get(name, "") for name in columns)])
    return path


def scenes(columns: Sequence[str], values: Mapping[str, Mapping[str, float] | None]) -> list[dict[str, object]]:
    """Rows with every sub-score 1 but those given by short name; ``None`` for a scene that failed."""
    rows: list[dict[str, object]] = []
    for token, given in values.items():
        if given is None:
            rows.append({"token": token, "valid": False})
        else:
            rows.append({"token": token, **dict.fromkeys(columns, 1.0), **{SHORT[key]: v for key, v in given.items()}})
    return rows


def average(rows: Sequence[Mapping[str, object]], columns: Sequence[str], token: str) -> dict[str, object]:
    """The last row that NAVSIM writes: means over what is there."""
    row: dict[str, object] = {"token": token, "valid": all(row.get("valid", True) for row in rows)}
    for name in columns:
        known = [float(str(row[name])) for row in rows if row.get(name, "") != ""]
        row[name] = sum(known) / len(known)
    return row


def write_v1(path: Path, values: Mapping[str, Mapping[str, float] | None]) -> Path:
    rows = scenes(V1, values)
    return write(path, V1, [*rows, average(rows, V1, "average")])


def write_v2(path: Path, values: Mapping[str, Mapping[str, float] | None]) -> Path:
    rows = scenes(V2, values)
    return write(path, V2, [*rows, average(rows, V2, "average_all_frames")])


def write_two_stages(
    path: Path, first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], combined: float
) -> Path:
    """As v2.x's run_pdm_score.py: every sub-score once per stage, one score.

    NAVSIM's totals of the stages: score 0.9 and 0.7, sub-scores 0.95 and 0.75, other than the plain means.
    """
    columns = [f"{name}_{stage}" for stage in ("stage_one", "stage_two") for name in V2[:-1]] + ["score"]
    rows: list[dict[str, object]] = []
    totals: list[dict[str, object]] = []
    whole: dict[str, object] = {}
    for stage, values, total in (("stage_one", first, 0.9), ("stage_two", second, 0.7)):
        for row in scenes(V2, values):
            rows.append(
                {"token": row["token"], "score": row["score"], **{f"{name}_{stage}": row[name] for name in V2[:-1]}}
            )
        parts = {f"{name}_{stage}": total + 0.05 for name in V2[:-1]}
        totals.append({"token": f"extended_pdm_score_{stage}", "score": total, **parts})
        whole |= parts
    totals.append({"token": "extended_pdm_score_combined", "score": combined, **whole})
    return write(path, columns, [*rows, *totals])
