"""torchcodec gives the frames that PyAV gives, whatever the file, or says in one line that it does not."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.common import extras
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.pixels import resize_frames
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.torchcodec_reader import TorchcodecReader, require_torchcodec

from ..helpers.files.video_files import encode, encoder, numbered_frame, numbered_frames, wipe_packet
from .test_pixels_shown import MATRICES, stored
from .test_reader import TIMES, x264

try:
    require_torchcodec()
    WHY_NOT = ""
except InputError as error:
    WHY_NOT = str(error)
needs_torchcodec = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

COUNT = 36
SETTINGS = am.VideoSettings(frames=6)
GROUPS_OF_10 = x264(10, 2)


def numbered(**how) -> Callable[[Path], Path]:  # type: ignore[no-untyped-def]
    return lambda path: encode(path, numbered_frames(COUNT), **{"options": x264(12, 2), **how})


def turned(name: str) -> Callable[[Path], Path]:
    a, b, c, d = MATRICES[name][0]
    return lambda path: stored(path, numbered_frame(0b10011101), matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])


def scene(
    path: Path, size: tuple[int, int], pix_fmt: str = "yuv420p", matrix: int = 1, full: bool = False, said: bool = True
) -> Path:
    """A few frames of a scene whose colours are stored in this way. said: whether the file says so."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder("libx264"), rate=25, options={"crf": "5", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if said:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for number, picture in enumerate(moving_scene(*size, 3)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def cut_off(path: Path) -> Path:
    numbered(options=GROUPS_OF_10, container={"movflags": "faststart"} if path.suffix == ".mp4" else None)(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    return path


def two_sizes(path: Path) -> Path:
    parts = [
        encode(path.with_name("first.ts"), numbered_frames(10), options={"bf": "0"}),
        encode(
            path.with_name("second.ts"),
            (numbered_frame(10 + n, 128, 96) for n in range(10)),
            options={"bf": "0"},
            times=list(range(1000, 1400, 40)),
        ),
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def two_streams(path: Path) -> Path:
    """The larger one comes second."""
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, side in zip(streams, (1, 2), strict=True):
            stream.width, stream.height, stream.pix_fmt = 96 * side, 64 * side, "yuv420p"
        for number in range(12):
            for stream, side in zip(streams, (1, 2), strict=True):
                picture = numbered_frame(number if side == 2 else 255 - number, 96 * side, 64 * side)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode())
    return path


KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "B-frames": ("mp4", numbered()),
    "open groups": ("mkv", numbered(options=x264(12, 2, x264opts="open-gop=1"))),
    "groups of two": ("mp4", numbered(options=x264(2, 1))),
    "one group": ("mp4", numbered(options=x264(250))),
    "MPEG-TS": ("ts", numbered()),
    "MPEG-TS without B-frames": ("ts", numbered(options=x264(12, 0))),
    "MPEG-4 in MPEG-TS": ("ts", numbered(codec="mpeg4", options={"g": "12", "bf": "2"})),
    "MPEG-2": ("ts", numbered(codec="mpeg2video", options={"g": "12", "bf": "2"})),
    "VP9": ("webm", numbered(codec="libvpx-vp9", options={"g": "12", "cpu-used": "8", "lag-in-frames": "16"})),
    "AVI": ("avi", numbered(codec="mpeg4", options={"g": "12", "bf": "0"})),
    "uneven times": (
        "mkv",
        lambda path: encode(path, numbered_frames(10), options=x264(5, 2), times=[1500 + t for t in TIMES]),
    ),
    "turned": ("mp4", lambda path: encode(path, numbered_frames(12), rotation=90)),
    "mirrored": ("mp4", turned("mirrored")),
    "transposed": ("mp4", turned("transposed")),
    "pixels not square": ("mp4", lambda path: stored(path, numbered_frame(77), Fraction(3, 2))),
    "odd sides": ("mp4", lambda path: encode(path, numbered_frames(12, 97, 65), pix_fmt="yuv444p")),
    "10 bits": ("mp4", lambda path: scene(path, (90, 64), "yuv420p10le")),
    "BT.2020, full range": ("mkv", lambda path: scene(path, (90, 64), matrix=9, full=True)),
    "HD that says nothing of its colours": ("mp4", lambda path: scene(path, (96, 578), said=False)),
    "two streams": ("mkv", two_streams),
    "two sizes": ("ts", two_sizes),
    "cut off in front of its end": ("mp4", cut_off),
    "MPEG-TS, cut off": ("ts", cut_off),
    "a damaged packet in a group": ("mp4", lambda path: wipe_packet(numbered(options=GROUPS_OF_10)(path), 24)),
    "a damaged packet alone": ("mkv", lambda path: wipe_packet(numbered(options={"g": "1"})(path), 24)),
    "damaged where it begins": ("mkv", lambda path: wipe_packet(numbered(options=GROUPS_OF_10)(path), 0)),
}


def pictures(reader, wanted: list[int]) -> dict[int, np.ndarray]:  # type: ignore[no-untyped-def]
    found = {}
    for part in reader.read(wanted, chunk=5):
        assert part.seconds == [reader.seconds[number] for number in part.indices]
        found |= dict(zip(part.indices, np.asarray(part.frames), strict=True))
    return found


@needs_torchcodec
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_frames(kind: str, tmp_path: Path) -> None:
    suffix, make = KINDS[kind]
    path = make(tmp_path / f"clip.{suffix}")
    reference, reader = VideoReader(path), am.Video(path).open("torchcodec")
    assert isinstance(reader, TorchcodecReader) and reader.decoder == "torchcodec on cpu"
    count = len(reference)
    assert (len(reader), reader.duration, reader.seconds.tolist()) == (
        count,
        reference.duration,
        reference.seconds.tolist(),
    )
    for wanted in (
        list(range(count)),
        [0, count // 2, count // 2 + 1],
        list(range(count % 5, count, 5)) or [count - 1],
    ):
        if "begins" in kind and wanted[0] == 0:
            continue  # which of the first frames are shown broken depends on where decoding begins
        expected, given = pictures(reference, wanted), pictures(reader, wanted)
        assert (given.keys(), reader.lost) == (expected.keys(), reference.lost)
        for number, picture in given.items():
            assert picture.shape == expected[number].shape and picture.dtype == np.uint8
            assert np.abs(picture.astype(int) - expected[number]).mean() < 1.5, number


def high_range(path: Path) -> Path:
    frame = av.VideoFrame(96, 64, "yuv420p10le")
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder("libx264"), rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, 16, 9
        for number in range(3):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def animation(path: Path) -> Path:
    shown = [Image.fromarray(numbered_frame(number)) for number in range(4)]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=40)
    return path


REFUSED: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "high dynamic range": ("mp4", high_range, "torchcodec does not bring high dynamic range to the screen"),
    "transparency": ("gif", animation, "torchcodec does not bring transparency to the screen"),
    "no times": ("avi", numbered(), "its frames have no times of their own"),
    "a container that keeps some times": (
        "mpg",
        numbered(codec="mpeg2video", options={"g": "12", "bf": "2"}),
        r"torchcodec is not known to keep the times of its container \(mpeg\)",
    ),
}


@needs_torchcodec
@pytest.mark.parametrize("kind", REFUSED)
def test_what_it_would_show_otherwise_is_refused(kind: str, tmp_path: Path) -> None:
    suffix, make, reason = REFUSED[kind]
    path = make(tmp_path / f"clip.{suffix}")
    assert len(am.Video(path).open())
    with pytest.raises(InputError, match=f"{reason}.*; take the decoder pyav for it$"):
        am.gaze_video(path, "pixel-diff", SETTINGS.changed(decoder="torchcodec"))


@needs_torchcodec
def test_other_colours_do_not_go_unnoticed(tmp_path: Path) -> None:
    """Older FFmpegs take 10 bits of full range for limited range, where the width is a multiple of 32."""
    path = scene(tmp_path / "clip.mp4", (96, 64), "yuv420p10le", full=True)
    expected = pictures(VideoReader(path), [0])[0]
    try:
        given = pictures(am.Video(path).open("torchcodec"), [0])[0]
    except InputError as error:
        assert "torchcodec shows other colours here, by up to" in str(error)
    else:
        assert np.abs(given.astype(int) - expected).mean() < 1.5


@needs_torchcodec
def test_gazing_and_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = numbered(codec="libx264")(tmp_path / "clip.mp4")
    chosen = SETTINGS.changed(decoder="torchcodec")
    expected = am.gaze_video(path, "pixel-diff", SETTINGS)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), am.Video(path)):
        gazed = am.gaze_video(source, "pixel-diff", chosen)
        assert torch.equal(gazed.timestamps, expected.timestamps)
        assert gazed.stats["decoder"] == "torchcodec on cpu" and gazed.settings["decoder"] == "torchcodec"
    base, processor = tiny_model("llava_onevision", image_size=64)
    model = am.wrap(base, "pixel-diff", processor=processor, cache=tmp_path / "cache", frames=6)
    model.ask(path, "what?", max_new_tokens=1)
    model.settings = model.settings.changed(decoder="torchcodec")
    model.ask(path, "what?", max_new_tokens=1)
    assert not model.stats["from_cache"]  # what PyAV decoded is another entry
    model.ask(path, "what?", max_new_tokens=1)
    assert model.stats["from_cache"] == 1
    with model.disabled():
        model.ask(path, "what?", max_new_tokens=1)
        assert model.stats["frames"] == 6
    assert main(["gaze", str(path), "--gaze", "pixel-diff", "--frames", "6", "--decoder", "torchcodec", "--json"]) == 0
    assert '"decoder": "torchcodec on cpu"' in capsys.readouterr().out


@pytest.mark.cuda
@needs_torchcodec
def test_on_the_card(tmp_path: Path) -> None:
    """Frames are decoded there and stay there, as PyAV shows them."""
    device = torch.device(os.environ.get("AUTOGAZE_TEST_DEVICE", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path = scene(tmp_path / "clip.mp4", (1280, 720))
    wanted = [0, 2]
    expected = pictures(VideoReader(path), wanted)
    reader = am.Video(path).open("torchcodec", device)
    assert reader.decoder == f"torchcodec on {device.type}"
    next(reader.read(wanted))  # what is loaded, and compared, once
    with torch.profiler.profile() as profile:
        for part in reader.read(wanted, chunk=1):
            frames = part.frames
            assert isinstance(frames, torch.Tensor) and frames.device.type == device.type
            small = resize_frames(frames, 224, 224, device)
            assert small.shape == (1, 3, 224, 224) and small.device.type == device.type
    assert not [event.name for event in profile.events() if "Memcpy DtoH" in event.name]
    for part in reader.read(wanted, chunk=1):
        apart = np.abs(part.frames[0].cpu().numpy().astype(int) - expected[part.indices[0]]).mean()
        assert apart < 3
    gazed = am.gaze_video(path, "pixel-diff", am.VideoSettings(frames=2, decoder="torchcodec"), device=device)
    assert gazed.stats["decoder"] == f"torchcodec on {device.type}"


# -- where there is none -----------------------------------------------------------------------------------------------


def test_without_torchcodec_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(extras.EXTRAS, "torchcodec", {"torchcodec": "no_such_torchcodec"})
    path = encode(tmp_path / "clip.mp4", numbered_frames(4))
    needed = r"decoder torchcodec needs torchcodec: pip install 'autogaze_mllm\[torchcodec\]'"
    with pytest.raises(InputError, match=needed):
        am.gaze_video(path, "pixel-diff", SETTINGS.changed(decoder="torchcodec"))
    base, processor = tiny_model("llava_onevision", image_size=64)
    with pytest.raises(InputError, match=needed):  # and not at the first video
        am.wrap(base, "pixel-diff", processor=processor, decoder="torchcodec")
    assert main(["ask", str(path), "what?", "--model", "no/such-model", "--decoder", "torchcodec"]) == 2
    assert "autogaze_mllm[torchcodec]" in capsys.readouterr().err


def test_a_torchcodec_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchcodec").mkdir()
    broken = 'raise RuntimeError("""Could not load libtorchcodec. Likely causes:\n  1. FFmpeg\n""")'
    (tmp_path / "torchcodec" / "__init__.py").write_text(broken)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"^torchcodec cannot be loaded .*FFmpeg's shared libraries") as caught:
        require_torchcodec()
    assert "\n" not in str(caught.value)


def test_what_was_stored_before_there_was_a_choice_is_still_found() -> None:
    assert "decoder" not in am.VideoSettings().to_dict()
    chosen = am.VideoSettings(decoder="torchcodec")
    assert chosen.to_dict()["decoder"] == "torchcodec" and am.VideoSettings.from_dict(chosen.to_dict()) == chosen
    assert chosen.sampling() != am.VideoSettings().sampling()  # they do not share a decoding
    for refused in (lambda: am.VideoSettings(decoder="ffmpeg"), lambda: am.Video("clip.mp4").open("ffmpeg")):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="decoder must be one of pyav, torchcodec, got 'ffmpeg'"):
            refused()
