"""What the commands of ``python -m navsim_recogdrive.cache`` do and print; each returns its exit status."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.cache.checked import CheckedFeatures
from navsim_recogdrive.cache.conversion import (
    ConversionReport,
    Entry,
    check_precision,
    check_target,
    claim_target,
    convert_foreign,
    convert_own,
    read_entry,
)
from navsim_recogdrive.cache.hidden_state import UNKNOWN_ORIGIN
from navsim_recogdrive.cache.identity import CacheIdentity, read_identity
from navsim_recogdrive.cache.peek import cached_scene_folders
from navsim_recogdrive.cache.runs import forget_dead_runs
from navsim_recogdrive.cache.scan import FOREIGN, LEFT_OUT, Layout, ScanReport, loose_files, remove, scan_cache
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.features import (
    EGO_CACHE,
    EGO_STATUS,
    HIDDEN_STATE,
    HIDDEN_STATE_LAYOUT,
    IMAGE_TILES_LAYOUT,
    PAST_POSES,
    SCENE_KEY,
    TOKEN,
    TOKEN_CACHE,
    TRAJECTORY,
    TRAJECTORY_CACHE,
)

_LAYOUTS = {"hidden states": HIDDEN_STATE_LAYOUT, "image tiles": IMAGE_TILES_LAYOUT}
_LISTED = 20

VLM_SETTINGS = ("dtype", "cam_type", "prompt_profile", "hidden_length", "max_tiles")
"""Options that are settings of the VLM beside its path, by their names in ``VLMConfig``."""


def inspect(options: argparse.Namespace) -> int:
    """Print what a cache holds; 1 if something in it must not be used."""
    identity = read_identity(options.root)
    reports = _scan(options, identity)
    if options.json:
        content = {
            "root": str(options.root),
            "identity": None if identity is None else identity.to_dict(),
            "loose": [str(path) for path in loose_files(options.root)],
            **{kind.replace(" ", "_"): _plain(report) for kind, report in reports.items()},
        }
        print(json.dumps(content, indent=2))
    else:
        print(f"cache {options.root}")
        print(f"  made by: {'it does not say' if identity is None else identity.describe()}")
        for kind, report in reports.items():
            _print_report(kind, report, options.full)
        _print_loose(options.root)
    return int(
        any(report.loose or any(one.kind != LEFT_OUT for one in report.misleading) for report in reports.values())
    )


def repair(options: argparse.Namespace) -> int:
    """Remove what must not be used."""
    findings = [
        finding
        for report in _scan(options, read_identity(options.root)).values()
        for finding in report.findings
        if options.foreign or finding.kind != FOREIGN
    ]
    unique = {finding.path: finding for finding in findings}.values()
    left_out = [finding for finding in unique if finding.kind == LEFT_OUT]
    findings = [finding for finding in unique if finding.kind != LEFT_OUT]
    removed = findings if options.dry_run else remove(findings, options.settle)
    if not options.dry_run:
        forget_dead_runs(options.root)
    for finding in removed:
        print(f"{'would remove' if options.dry_run else 'removed'} {finding.path} ({finding.kind}: {finding.reason})")
    for finding in left_out:
        print(f"left alone {finding.path} ({finding.reason})")
    kept = len(findings) - len(removed)
    print(
        f"{len(removed)} files {'to remove' if options.dry_run else 'removed'}"
        + (f", {kept} left alone: another process is writing them" if kept else "")
        + (
            "; run_dataset_caching.py with force_cache_computation=false computes their scenes again"
            if removed and not options.dry_run
            else ""
        )
    )
    _print_loose(options.root, {finding.path for finding in removed})
    return 0


def convert(options: argparse.Namespace) -> int:
    """Write a converted copy of a cache."""
    names = (SCENE_KEY, HIDDEN_STATE)
    if (options.source_file is None) != (options.source_key is None):
        raise ValueError("--source-file and --source-key belong together")
    _require_folder(options.source)
    if (options.past_poses is None) != (options.ego_status is None):
        raise ValueError("--past-poses and --ego-status belong together: they are one file of a scene")
    if options.source_file is None and (options.past_poses or options.trajectory):
        raise ValueError("--past-poses, --ego-status and --trajectory need --source-file and --source-key")
    check_target(options.source.resolve(), options.target.resolve())
    common = (options.source, options.target, HIDDEN_STATE_LAYOUT, names, options.mode, options.workers)
    if options.source_file is None:
        identity = read_identity(options.source)
        check_precision(identity, options.mode)
        claim_target(
            options.target, HIDDEN_STATE_LAYOUT, None if identity is None else replace(identity, mode=options.mode)
        )
        report = convert_own(*common)
    else:
        identity = _stated_identity(options)
        claim_target(options.target, HIDDEN_STATE_LAYOUT, identity)
        report = convert_foreign(
            *common,
            state=Entry(options.source_file, options.source_key),
            small=_small_features(options),
            features=None if identity is None else identity.hidden_size,
            origin=UNKNOWN_ORIGIN if identity is None else identity.origin,
        )
    return _print_conversion(report, options)


def estimate(options: argparse.Namespace) -> int:
    """Print what caching will take."""
    from navsim_recogdrive.policy.backbones import SharedBackbone
    from navsim_recogdrive.policy.cache_estimate import estimate_cache

    config = _vlm_config(options)
    scenes = options.scenes
    processes = options.processes or max(1, torch.cuda.device_count())
    folder = options.cache_path
    folder.mkdir(parents=True, exist_ok=True)
    backbone = SharedBackbone(config, options.device)
    found = estimate_cache(backbone, options.sensor_blobs, folder, options.samples, options.mode, options.device)
    free = shutil.disk_usage(folder).free
    needed = found.disk_bytes(scenes)
    hours = found.hours(scenes, processes)
    if options.json:
        content = {**asdict(found), "scenes": scenes, "processes": processes, "hours": hours}
        print(json.dumps({**content, "disk_bytes": needed, "free_bytes": free}, indent=2))
        return 0
    length, features = found.hidden_state
    print(f"one scene, medians of {found.samples} (hidden state {length} x {features}, mode {options.mode}):")
    for what, seconds in (
        ("read images", found.read_s),
        ("tiles, prompt", found.prepare_s),
        ("VLM", found.vlm_s),
        ("compress, write", found.write_s),
        ("together", found.scene_s),
    ):
        print(f"  {what:16} {1e3 * seconds:9.1f} ms")
    print(f"  {'disk':16} {found.scene_bytes / 1e6:9.2f} MB")
    print(f"{scenes} scenes: {_size(needed)} ({_size(free)} free in {folder})")
    took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    print(f"  {took} with {processes} process{'es' if processes > 1 else ''}, one per GPU")
    if needed > free:
        print(
            "  the disk is too small" + (": agent.cache_mode=int8 takes about half" if options.mode != "int8" else "")
        )
    return 0


def _vlm_config(options: argparse.Namespace) -> VLMConfig:
    return VLMConfig(path=options.vlm, **{name: getattr(options, name) for name in VLM_SETTINGS})


def _stated_identity(options: argparse.Namespace) -> CacheIdentity | None:
    from navsim_recogdrive.policy.backbones import SharedBackbone

    return None if options.vlm is None else SharedBackbone(_vlm_config(options)).identity(options.mode)


def _small_features(options: argparse.Namespace) -> dict[str, Callable[[Path], dict[str, Any]]]:
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {
        TOKEN_CACHE: lambda folder: CheckedFeatures({TOKEN: folder.name})
    }
    if options.past_poses is not None:
        makers[EGO_CACHE] = lambda folder: CheckedFeatures(
            {
                PAST_POSES: read_entry(folder, options.past_poses).float().reshape(4, 3),
                EGO_STATUS: read_entry(folder, options.ego_status).float().reshape(8),
            }
        )
    if options.trajectory is not None:
        makers[TRAJECTORY_CACHE] = lambda folder: CheckedFeatures(
            {TRAJECTORY: read_entry(folder, options.trajectory).float().reshape(8, 3)}
        )
    return makers


def _scan(options: argparse.Namespace, identity: CacheIdentity | None) -> dict[str, ScanReport]:
    """Reports by kind of content, of the kinds that the cache holds."""
    _require_folder(options.root)
    kinds: dict[str, Layout] = {
        kind: layout
        for kind, layout in _LAYOUTS.items()
        if next(cached_scene_folders(options.root, options.logs, f"{layout.files[0]}.gz"), None) is not None
    }
    if not kinds:
        raise FileNotFoundError(
            f"{options.root} holds no hidden states or image tiles (LOG/TOKEN/{HIDDEN_STATE_LAYOUT.files[0]}.gz)"
        )
    return {
        kind: scan_cache(
            options.root,
            layout,
            options.logs,
            full=options.full,
            identity=identity,
            workers=options.workers,
            progress=True,
        )
        for kind, layout in kinds.items()
    }


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")


def _print_report(kind: str, report: ScanReport, full: bool) -> None:
    print(f"  {kind}: {report.scenes} scenes are whole ({'full' if full else 'quick'} scan)")
    for (mode, length, features), count in sorted(report.states.items()):
        print(f"    {count} of {length} x {features} in mode {mode}")
    for name, size in sorted(report.file_bytes.items(), key=lambda item: -item[1]):
        print(f"    {name:28} {_size(size)}")
    if report.incomplete:
        print(f"    {len(report.incomplete)} lack files and are not used; caching again completes them")
    if report.evaluation_only:
        print(f"    {len(report.evaluation_only)} lack the expert's trajectory: for evaluation only")
    for finding in report.findings[:_LISTED]:
        print(f"    {finding.kind}: {finding.reason}")
    if len(report.findings) > _LISTED:
        print(f"    and {len(report.findings) - _LISTED} more")
    if report.findings:
        kinds = {finding.kind for finding in report.findings}
        but = ", but not those of a run in progress" if LEFT_OUT in kinds else ""
        if kinds - {FOREIGN, LEFT_OUT}:
            print(f"    repair removes these files{but}, so that caching computes their scenes again")
        if FOREIGN in kinds:
            print("    the foreign ones, of another VLM or prompt, only with repair --foreign")


def _print_loose(root: Path, removed: Collection[Path] = ()) -> None:
    for path in loose_files(root):
        if path in removed:  # a dry run
            continue
        advice = "repair removes it" if path.suffix == ".partial" else "move it elsewhere"
        print(f"  loose: {path} is no log's folder, and NAVSIM's Dataset fails on it; {advice}")


def _plain(report: ScanReport) -> dict[str, Any]:
    return {
        "scenes": report.scenes,
        "incomplete": [str(path) for path in report.incomplete],
        "evaluation_only": [str(path) for path in report.evaluation_only],
        "findings": [{"path": str(one.path), "kind": one.kind, "reason": one.reason} for one in report.findings],
        "file_bytes": dict(report.file_bytes),
        "states": [
            {"mode": mode, "rows": length, "features": features, "count": count}
            for (mode, length, features), count in sorted(report.states.items())
        ],
    }


def _print_conversion(report: ConversionReport, options: argparse.Namespace) -> int:
    print(
        f"{report.converted} scenes converted to {options.mode} in {options.target}, {report.skipped} were there "
        f"already ({_size(report.source_bytes)} became {_size(report.target_bytes)})"
    )
    if report.completed:
        print(f"{report.completed} of those got files that they lacked")
    if report.rounded:
        print(f"{report.rounded} of them held values finer than bf16; mode fp32 keeps them")
    for folder, reason in list(report.failed.items())[:_LISTED]:
        print(f"not converted: {folder}: {reason}")
    if len(report.failed) > _LISTED:
        print(f"and {len(report.failed) - _LISTED} more")
    if options.source_file is not None and None in (options.past_poses, options.ego_status, options.trajectory):
        print(
            "without --past-poses, --ego-status and --trajectory these scenes lack files that training needs, and "
            "run_dataset_caching.py would compute them again from the start"
        )
    return int(bool(report.failed))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
