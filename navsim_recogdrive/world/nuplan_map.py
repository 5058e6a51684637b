"""Writes a town as a nuPlan map package: a GeoPackage per location and the index file beside them.

A GeoPackage is an SQLite file with a few prescribed tables (OGC 12-128), so it is written with the standard library.
Layers, columns and the meaning of ids are those that nuPlan's map API reads: ids are the rows' ``fid``; a lane
connector's ``exit_lane_fid`` is the lane it comes from and ``entry_lane_fid`` the lane it leads to.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon
from shapely.geometry.base import BaseGeometry

from navsim_recogdrive.world.geometry import FloatArray
from navsim_recogdrive.world.road_network import LOCATIONS, PAVEMENT_WIDTH_M, RoadNetwork
from navsim_recogdrive.world.utm import utm_to_lonlat

MAP_VERSION = "nuplan-maps-v1.0"
PACKAGE_VERSION = "world-1"
_WGS84 = 4326
_SIGNAL_STOP_POLYGON = 2
"""nuPlan's stop polygon type for traffic lights."""

_SIMPLIFICATION_M = 0.003

Row = tuple[int, BaseGeometry, dict[str, Any]]
Layer = tuple[str, list[Row]]


def write_maps(folder: Path, networks: list[RoadNetwork]) -> None:
    """Write the map packages of all ``networks`` (one per location) into ``folder``."""
    index = {}
    for network in networks:
        name = network.location.name
        target = folder / name / PACKAGE_VERSION / "map.gpkg"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_geopackage(target, network)
        index[name] = {"version": PACKAGE_VERSION, "layers": {}}
    missing = {location.name for location in LOCATIONS} - set(index)
    if missing:
        raise ValueError(f"nuPlan opens the maps of all its locations at once; no town was given for {sorted(missing)}")
    temporary = folder / f".{MAP_VERSION}.json.tmp"
    temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, folder / f"{MAP_VERSION}.json")


def write_geopackage(path: Path, network: RoadNetwork) -> None:
    """Write one town to ``path``, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary)
    try:
        with connection:
            _create(connection)
            for name, rows in map_layers(network):
                _write_layer(connection, name, rows, network.location.epsg)
            _write_meta(connection, {"projectedCoordSystem": f"EPSG:{network.location.epsg}"})
        connection.execute("VACUUM")
    finally:
        connection.close()
    os.replace(temporary, path)


def map_layers(network: RoadNetwork) -> list[Layer]:
    """All layers of a town in UTM coordinates: (name, rows of (fid, geometry, columns))."""
    first_free = max((*network.lanes, *network.connectors, *network.roadblocks)) + 1
    counter = iter(range(first_free, first_free + 1_000_000))
    boundaries: list[Row] = []

    def boundary(points: FloatArray) -> int:
        number = next(counter)
        boundaries.append((number, LineString(points), {"boundary_type_fid": 0}))
        return number

    junctions = {node.id: next(counter) for node in network.junctions.values()}
    stop_lines = {key: next(counter) for key in network.stop_lines}
    lanes: list[Row] = []
    baselines: list[Row] = []
    for lane in network.lanes.values():
        columns = {
            "lane_fid": lane.id,
            "lane_group_fid": lane.roadblock,
            "lane_index": lane.index,
            "speed_limit_mps": lane.speed_limit,
            "left_boundary_fid": boundary(lane.left),
            "right_boundary_fid": boundary(lane.right),
        }
        lanes.append((lane.id, lane.polygon, columns))
        baselines.append((next(counter), _path(lane.line.points), {"lane_fid": lane.id, "lane_connector_fid": None}))
    connectors: list[Row] = []
    connector_polygons: list[Row] = []
    for connector in network.connectors.values():
        stop = stop_lines.get((connector.node, connector.from_arm))
        line = _path(connector.line.points)
        connector_columns: dict[str, Any] = {
            "exit_lane_fid": connector.from_lane,
            "entry_lane_fid": connector.to_lane,
            "lane_group_connector_fid": connector.roadblock,
            "intersection_fid": junctions[connector.node],
            "speed_limit_mps": connector.speed_limit,
            "traffic_light_stop_line_fids": "" if stop is None else str(stop),
        }
        connectors.append((connector.id, line, connector_columns))
        sides = {
            "lane_connector_fid": connector.id,
            "left_boundary_fid": boundary(connector.left),
            "right_boundary_fid": boundary(connector.right),
        }
        connector_polygons.append((next(counter), connector.polygon, sides))
        baselines.append((next(counter), line, {"lane_fid": None, "lane_connector_fid": connector.id}))
    groups: list[Row] = []
    group_connectors: list[Row] = []
    for block in network.roadblocks.values():
        if block.is_connector:
            assert block.node is not None
            block_columns: dict[str, Any] = {
                "from_lane_group_fid": block.source,
                "to_lane_group_fid": block.target,
                "intersection_fid": junctions[block.node],
            }
            group_connectors.append((block.id, block.polygon, block_columns))
        else:
            node = network.lanes[block.members[0]]
            group_columns: dict[str, Any] = {
                "from_intersection_fid": junctions[node.start_node],
                "to_intersection_fid": junctions[node.end_node],
            }
            groups.append((block.id, block.polygon, group_columns))

    def plain(areas: list[Polygon]) -> list[Row]:
        return [(next(counter), area, {}) for area in areas]

    walkways = [
        LineString(edge.line.points).buffer(PAVEMENT_WIDTH_M / 2.0, cap_style="flat")
        for edge in network.foot_edges
        if edge.crosswalk is None
    ]
    return [
        ("lanes_polygons", lanes),
        ("lane_groups_polygons", groups),
        ("lane_connectors", connectors),
        ("gen_lane_connectors_scaled_width_polygons", connector_polygons),
        ("lane_group_connectors", group_connectors),
        ("baseline_paths", baselines),
        ("boundaries", boundaries),
        ("intersections", [(junctions[n.id], n.polygon, {}) for n in network.junctions.values()]),
        ("carpark_areas", plain(network.parking_polygons)),
        (
            "stop_polygons",
            [
                (number, network.stop_lines[key], {"stop_polygon_type_fid": _SIGNAL_STOP_POLYGON})
                for key, number in stop_lines.items()
            ],
        ),
        ("crosswalks", plain(list(network.crosswalks.values()))),
        ("walkways", plain(walkways)),
        ("road_segments", plain([block[1] for block in groups])),
        ("generic_drivable_areas", plain(network.parking_polygons)),
    ]


def _path(points: FloatArray) -> LineString:
    """Every second sample of a centre line: 0.8 m apart, a chord error of 7 mm in the tightest turn."""
    return LineString(np.concatenate([points[:-1:2], points[-1:]]))


def _create(connection: sqlite3.Connection) -> None:
    connection.executescript(
        """
        PRAGMA application_id = 0x47504B47;
        PRAGMA user_version = 10300;
        CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
            organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL,
            description TEXT);
        CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL,
            identifier TEXT UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL,
            min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER);
        CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL UNIQUE, column_name TEXT NOT NULL,
            geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
            PRIMARY KEY (table_name, column_name));
        """
    )
    wgs84 = (
        'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
        'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],'
        'UNIT["degree",0.0174532925199433,AUTHORITY["EPSG","9122"]],AUTHORITY["EPSG","4326"]]'
    )
    connection.executemany(
        "INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)",
        [
            ("WGS 84", _WGS84, "EPSG", _WGS84, wgs84),
            ("Undefined Cartesian", -1, "NONE", -1, "undefined"),
            ("Undefined geographic", 0, "NONE", 0, "undefined"),
        ],
    )


def _write_layer(connection: sqlite3.Connection, name: str, rows: list[Row], epsg: int) -> None:
    columns = list(rows[0][2]) if rows else []
    types = {column: _sql_type([row[2][column] for row in rows]) for column in columns}
    declared = "".join(f', "{column}" {types[column]}' for column in columns)
    kind = "LINESTRING" if rows and rows[0][1].geom_type == "LineString" else "POLYGON"
    connection.execute(f'CREATE TABLE "{name}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom {kind}{declared})')
    # Collinear samples cost nuPlan's point-in-polygon tests time and add nothing; paths keep theirs, because the
    # closest sample of a path is taken as the closest point.
    shapes = np.array([row[1] for row in rows], dtype=object)
    if name not in ("baseline_paths", "lane_connectors"):
        shapes = shapely.simplify(shapes, _SIMPLIFICATION_M)
    geometries = shapely.transform(shapes, lambda points: utm_to_lonlat(points, epsg))
    header = b"GP\x00\x01" + struct.pack("<i", _WGS84)
    marks = ", ".join("?" * (2 + len(columns)))
    connection.executemany(
        f'INSERT INTO "{name}" VALUES ({marks})',
        [
            (row[0], header + shapely.to_wkb(geometry, byte_order=1), *row[2].values())
            for row, geometry in zip(rows, geometries, strict=True)
        ],
    )
    bounds = [float(v) for v in shapely.total_bounds(geometries)] if rows else [None] * 4
    connection.execute(
        "INSERT INTO gpkg_contents VALUES (?, 'features', ?, '', '2026-01-01T00:00:00.000Z', ?, ?, ?, ?, ?)",
        (name, name, *bounds, _WGS84),
    )
    connection.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', ?, ?, 0, 0)", (name, kind, _WGS84))


def _sql_type(values: list[Any]) -> str:
    if any(isinstance(value, str) for value in values):
        return "TEXT"
    return "DOUBLE" if any(isinstance(value, float) for value in values) else "INTEGER"


def _write_meta(connection: sqlite3.Connection, entries: dict[str, str]) -> None:
    connection.execute('CREATE TABLE meta (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "key" TEXT, "value" TEXT)')
    connection.executemany('INSERT INTO meta ("key", "value") VALUES (?, ?)', sorted(entries.items()))
    connection.execute(
        "INSERT INTO gpkg_contents VALUES "
        "('meta', 'attributes', 'meta', '', '2026-01-01T00:00:00.000Z', NULL, NULL, NULL, NULL, NULL)"
    )
