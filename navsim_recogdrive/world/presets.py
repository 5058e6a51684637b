"""Settings of a world, and the named ones."""

from __future__ import annotations

from dataclasses import dataclass

from navsim_recogdrive.world.camera import CAMERA_SETS, FULL_SIZE
from navsim_recogdrive.world.simulate import FRAME_INTERVAL_S

SCENE_FRAMES = 14
"""Frames of a scene: 4 of history (the present included) and 10 of future, as NAVSIM cuts them."""

_SPLIT_OFFSETS = {"train": 0, "val": 100_000, "test": 200_000}
"""First drive number of each split: more training logs leave the test logs as they are."""


class InvalidSettings(ValueError):
    """Settings no world can be made of."""


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of. Two worlds with equal settings are equal, file by file.

    Attributes:
        seed: everything random follows from it.
        train_logs: drives for training (in the split ``trainval``).
        val_logs: drives for validation (in the split ``trainval`` too, as in NAVSIM).
        test_logs: drives in the split ``test``.
        seconds_per_log: length of a drive; at 2 Hz a drive of T seconds has 2 T frames and 2 T - 13 scenes.
        vehicles: moving vehicles besides the ego.
        pedestrians: people on foot.
        cameras: which cameras are rendered, a key of ``CAMERA_SETS``.
        image_size: (width, height) in pixels.
        jpeg_quality: 1..100.

    Raises:
        InvalidSettings: naming the field, the bounds and the value found.
    """

    seed: int = 0
    train_logs: int = 16
    val_logs: int = 3
    test_logs: int = 3
    seconds_per_log: float = 20.0
    vehicles: int = 50
    pedestrians: int = 45
    cameras: str = "front"
    image_size: tuple[int, int] = FULL_SIZE
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        bounds = {
            "seed": (0, 2**31 - 1),
            "train_logs": (0, 100_000),
            "val_logs": (0, 100_000),
            "test_logs": (0, 100_000),
            "seconds_per_log": (SCENE_FRAMES * FRAME_INTERVAL_S, 600),
            "vehicles": (0, 120),
            "pedestrians": (0, 400),
            "jpeg_quality": (1, 100),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidSettings(f"{name} must be in {low}..{high}, found {value}")
        if self.train_logs + self.val_logs + self.test_logs == 0:
            raise InvalidSettings("a world needs at least one log: train_logs, val_logs and test_logs are all 0")
        if self.cameras not in CAMERA_SETS:
            raise InvalidSettings(f"cameras must be one of {', '.join(CAMERA_SETS)}, found {self.cameras!r}")
        width, height = self.image_size
        if not (160 <= width <= 7680 and 90 <= height <= 4320):
            raise InvalidSettings(f"image_size must lie between 160x90 and 7680x4320, found {width}x{height}")

    @property
    def frames_per_log(self) -> int:
        """Frames of one log."""
        return round(self.seconds_per_log / FRAME_INTERVAL_S)

    @property
    def scenes_per_log(self) -> int:
        """Scenes in one log when every frame may start one (``frame_interval=1``)."""
        return self.frames_per_log - SCENE_FRAMES + 1

    def drives(self) -> list[tuple[str, str, int]]:
        """(part, log name, drive number) of every log, part being ``train``, ``val`` or ``test``."""
        counts = {"train": self.train_logs, "val": self.val_logs, "test": self.test_logs}
        return [
            (part, f"world-{self.seed:04d}-{part}-{i:04d}", _SPLIT_OFFSETS[part] + i)
            for part, count in counts.items()
            for i in range(count)
        ]


def split_of(part: str) -> str:
    """NAVSIM's data split of a part: ``trainval`` holds both ``train`` and ``val``."""
    return "test" if part == "test" else "trainval"


PRESETS: dict[str, WorldSettings] = {
    "seconds": WorldSettings(
        train_logs=2, val_logs=1, test_logs=2, seconds_per_log=10.0, vehicles=35, pedestrians=30, image_size=(960, 540)
    ),
    "quickstart": WorldSettings(train_logs=16, val_logs=3, test_logs=3),
    "small": WorldSettings(train_logs=48, val_logs=8, test_logs=12),
    "large": WorldSettings(train_logs=200, val_logs=20, test_logs=40, seconds_per_log=30.0),
}
"""``seconds``: 35 scenes for smoke tests. ``quickstart``: 432 + 81 + 81 scenes. ``small``: 1296 + 216 + 324.
``large``: 9400 + 940 + 1880."""
