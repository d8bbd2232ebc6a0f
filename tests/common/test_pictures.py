"""One way of opening pictures: upright, in full depth, what is transparent over white, and what is none in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import autogaze_mllm as am
from autogaze_mllm.common.pixels import open_picture
from autogaze_mllm.finetuning.data.media_store import GazedCache, MediaStore
from autogaze_mllm.finetuning.data.samples import check_samples, load_samples
from autogaze_mllm.mllm.tiny import tiny_model

DEEP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))  # black to white
RAMP = Image.fromarray(np.repeat((DEEP >> 8).astype(np.uint8)[..., None], 3, axis=2))


def opened(path: Path) -> np.ndarray:
    image = open_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[:, :60], pixels[90:] = (255, 0, 0), (0, 255, 0)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone.{suffix}"
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
        assert np.array_equal(np.asarray(open_picture(stored)), expected)  # opened by the caller
    assert expected.shape == ((120, 200, 3) if orientation < 5 else (200, 120, 3))
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), path.open("rb")):
        assert np.array_equal(np.asarray(open_picture(source)), expected)
    assert np.array_equal(np.asarray(open_picture(open_picture(path))), expected)  # once is enough


def test_prompts_and_training_see_the_same_picture(tmp_path: Path) -> None:
    image = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (30, 1, 3)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "phone.jpg", exif=exif)
    base, processor = tiny_model("llava_onevision")
    model = am.wrap(base, "pixel-diff", processor=processor, cache=False)
    asked = model.prepare("<image>?", images=str(tmp_path / "phone.jpg"))["media"][0][0].content
    assert asked["image_sizes"].tolist() == [[60, 30]]
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": "phone.jpg", "conversations": turns}))
    store = MediaStore(model, GazedCache(tmp_path / "gazed"))
    samples = load_samples([data])
    store.prepare(samples)
    learnt = store.media(samples[0])[0].content
    assert learnt.keys() == asked.keys() and torch.equal(learnt["pixel_values"], asked["pixel_values"])


DEPTHS: dict[str, Any] = {
    "16 bits.png": lambda: Image.fromarray(DEEP),
    "16 bits.tif": lambda: Image.fromarray(DEEP),
    "16 bits.pgm": lambda: Image.fromarray(DEEP),
    "16 bits, big end first.tif": lambda: Image.fromarray(DEEP.astype(">u2")),
    "32 bits.tif": lambda: Image.fromarray(DEEP.astype(np.int32)),
    "float.tif": lambda: Image.fromarray((DEEP / 65535).astype(np.float32)),
    "8 bits.png": lambda: RAMP.convert("L"),
    "8 bits.jpg": lambda: RAMP.convert("L"),
    "with alpha.png": lambda: RAMP.convert("LA"),
    "colour and alpha.png": lambda: RAMP.convert("RGBA"),
    "colour and alpha.webp": lambda: RAMP.convert("RGBA"),
    "for printing.jpg": lambda: RAMP.convert("CMYK"),
    "for printing.tif": lambda: RAMP.convert("CMYK"),
    "video colours.jpg": lambda: RAMP.convert("YCbCr"),
    "palette.png": lambda: RAMP.quantize(64),
    "palette.gif": lambda: RAMP.quantize(64),
    "plain.bmp": lambda: RAMP,
}


@pytest.mark.parametrize("name", DEPTHS)
def test_every_depth_and_mode_gives_the_same_grey(name: str, tmp_path: Path) -> None:
    DEPTHS[name]().save(tmp_path / name)
    assert np.abs(opened(tmp_path / name).astype(int) - np.asarray(RAMP)).max() <= 6


def test_two_colours(tmp_path: Path) -> None:
    RAMP.convert("1", dither=Image.Dither.NONE).save(tmp_path / "a.png")
    assert sorted(set(opened(tmp_path / "a.png").flatten().tolist())) == [0, 255]


def clear_corner(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """A red picture whose left half cannot be seen, and how it is to be stored."""
    if mode == "RGBA":
        pixels = np.full((8, 8, 4), (255, 0, 0, 255), np.uint8)
        pixels[:, :4, 3] = 0
        return Image.fromarray(pixels), {}
    pixels = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    pixels[:, :4] = (0, 0, 255)
    if mode == "RGB":
        return Image.fromarray(pixels), {"transparency": (0, 0, 255)}
    image = Image.fromarray(pixels).quantize(2)
    return image, {"transparency": int(image.getpixel((0, 0)))}  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    image, options = clear_corner(mode)
    image.save(tmp_path / "a.png", **options)
    pixels = opened(tmp_path / "a.png")
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 7].tolist() == [255, 0, 0]


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png")[0, 0].tolist() == pytest.approx([127] * 3, abs=1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_pictures_in_a_file_the_first_is_taken(suffix: str, tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    red.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[blue])
    assert opened(tmp_path / f"a.{suffix}").mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=4)


def assert_refused(source: Any, reason: str) -> None:
    with pytest.raises(am.InputError, match=reason) as caught:
        open_picture(source)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.tif", "a.bmp"])
def test_pictures_that_are_cut_off_are_refused(name: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    for share in (0.1, 0.5, 0.9):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"cut {name}").write_bytes(data[: int(len(data) * share)])
        assert_refused(tmp_path / f"cut {name}", rf"cut {name}: not a readable image")


def test_what_is_no_picture_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((4, 4), 300.0, np.float32)).save(tmp_path / "float.tif")
    assert_refused(tmp_path / "text.png", r"text\.png: not a readable image \(of no known format\)")
    assert_refused(tmp_path / "empty.png", "of no known format")
    assert_refused(tmp_path / "float.tif", "its values go from 300 to 300, expected 0 to 1")
    assert_refused(tmp_path / "missing.png", "no such file")
    assert_refused(tmp_path, "is a folder, expected a picture file")
    assert_refused("/dev/zero", "is a pipe or a device")
    assert_refused("https://example.com/a.png", "is an address, not a file: download the picture first")
    assert_refused(tmp_path / "a\nb.png", r"a\\nb\.png: no such file")
    assert_refused(b"nothing", "picture of 7 bytes: not a readable image")
    for source in (5, None, {}, [RAMP]):
        assert_refused(source, f"{type(source).__name__} is no picture")


def test_a_bomb_is_refused_before_it_bursts(tmp_path: Path) -> None:
    Image.new("1", (40000, 5000)).save(tmp_path / "bomb.png")  # a few kilobytes that would be 600 MB
    assert_refused(tmp_path / "bomb.png", "exceeds limit of")
    turns = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": "bomb.png", "conversations": turns}))
    _, faults = check_samples([data])
    assert "exceeds limit of" in faults[0].message
