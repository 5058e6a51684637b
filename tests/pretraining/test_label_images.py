"""Images as data URLs."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from navsim_recogdrive.pretraining.images import BadImage
from navsim_recogdrive.pretraining.labelling import images
from navsim_recogdrive.pretraining.labelling.images import DataUrls, ImageScaling, data_url, grey_square


def _write(path: Path, size: tuple[int, int]) -> Path:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


def _content(url: str) -> bytes:
    head, text = url.split(",")
    assert head == "data:image/jpeg;base64"
    return base64.b64decode(text, validate=True)


def test_a_small_jpeg_goes_as_it_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jpg", (64, 36))
    assert _content(data_url(path, ImageScaling(64))) == path.read_bytes()
    assert _content(data_url(path, ImageScaling(0))) == path.read_bytes()


@pytest.mark.parametrize(("name", "side", "size"), [("a.jpg", 32, (32, 18)), ("a.png", 64, (64, 36))])
def test_others_become_jpegs_of_the_size(tmp_path: Path, name: str, side: int, size: tuple[int, int]) -> None:
    content = _content(data_url(_write(tmp_path / name, (64, 36)), ImageScaling(side)))
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("JPEG", size)


def test_bad_images_are_named(tmp_path: Path) -> None:
    whole = _write(tmp_path / "a.jpg", (640, 360)).read_bytes()
    for content, reason in ((whole[: len(whole) // 2], "broken"), (b"", "empty"), (b"GIF89a", "broken")):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(BadImage, match=f"bad.jpg: image {reason}"):
            data_url(tmp_path / "bad.jpg", ImageScaling())
    with pytest.raises(BadImage, match="none.jpg: image missing"):
        data_url(tmp_path / "none.jpg", ImageScaling())


def test_questions_about_one_image_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        _write(tmp_path / f"{name}.jpg", (64, 36))
    made: list[str] = []

    def counted(path: Path, scaling: ImageScaling) -> str:
        made.append(path.name)
        return data_url(path, scaling)

    monkeypatch.setattr(images, "data_url", counted)

    async def ask() -> None:
        urls = DataUrls(tmp_path, most=2)
        first = await asyncio.gather(*(urls.get("a.jpg", ImageScaling()) for _ in range(9)))
        assert len(set(first)) == 1
        for name in ("b.jpg", "c.jpg", "b.jpg", "a.jpg"):
            await urls.get(name, ImageScaling())
        with pytest.raises(BadImage):
            await urls.get("none.jpg", ImageScaling())

    asyncio.run(ask())
    assert made == ["a.jpg", "b.jpg", "c.jpg", "a.jpg", "none.jpg"]


def test_the_probe_s_image_is_one() -> None:
    with Image.open(io.BytesIO(_content(grey_square()))) as image:
        assert image.size == (112, 112)


@pytest.mark.parametrize("arguments", [(-1, 90), (640, 0), (640, 96)])
def test_impossible_scaling(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageScaling(*arguments)
