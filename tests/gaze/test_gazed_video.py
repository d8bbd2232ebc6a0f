"""From a selection, or a whole video file, to packed patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.pixels import PixelFormat, resize_bicubic, resize_frames
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.patches import PatchStore, gather_patches
from autogaze_mllm.gaze.pipeline import GazedChunk, gaze_video
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector
from autogaze_mllm.gaze.selectors.pixel_diff import PixelDiffSelector
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

from ..helpers.files.video_files import encode, numbered_frames, wipe_packet
from ..helpers.selections import SELECTORS, as_info, random_kept

GRIDS = {
    "square": PatchGrid.of("32+64", 16),
    "wide": PatchGrid.of([(32, 64), (48, 128)], 16),
    "tall": PatchGrid.of([(56, 28), (98, 70)], 14),
    "remainders": PatchGrid.of([20, (37, 50), 71], 16),
    "small patches": PatchGrid.of("16+24+48", 8),
}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
SMALL = PatchGrid.of("32+64", 16)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def all_patches(pixels: torch.Tensor, grid: PatchGrid) -> torch.Tensor:
    """(F, 3, H, W) -> (F, positions, 3 * patch * patch), by cutting up everything."""
    scales = [resize_bicubic(pixels, height, width) for height, width in grid.scales]
    return torch.cat([F.unfold(scale, grid.patch, stride=grid.patch) for scale in scales], dim=2).transpose(1, 2)


# Cutting out patches


@each_grid
@pytest.mark.parametrize("size", [(64, 64), (50, 130)], ids=str)
def test_patches_at_every_position(grid: PatchGrid, size: tuple[int, int]) -> None:
    pixels = noise(3, 3, *size)
    order = torch.randperm(3 * grid.size, generator=torch.Generator().manual_seed(0))
    frame, index = order // grid.size, order % grid.size
    expected = all_patches(pixels, grid)[frame, index]
    assert torch.allclose(gather_patches(pixels, grid, frame, index), expected, atol=1e-6)


class Resized(TorchDispatchMode):
    """Remembers the shape of every resized picture."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "upsample" in str(func):
            self.shapes.append(tuple(result.shape))
        return result


def test_frames_are_resized_only_at_scales_where_a_patch_is_kept() -> None:
    grid = PatchGrid.of("32+64+96", 16)
    pixels = noise(5, 3, 80, 80)
    frame, index = torch.tensor([1, 3, 3, 3]), torch.tensor([0, 2, 4 + 16 + 7, 4 + 16 + 9])
    with Resized() as resized:
        gather_patches(pixels, grid, frame, index)
    assert resized.shapes == [(2, 3, 32, 32), (1, 3, 96, 96)]


# GazedVideo


@each_grid
def test_from_a_selection(grid: PatchGrid) -> None:
    """Padding is dropped, the order of choice is kept."""
    kept, pixels = random_kept(grid, 4, 3, 9), noise(4, 3, 3, 64, 64)
    kept[2] = [[], [], []]
    for padding in (0, 3):
        gazed = GazedVideo.from_info(pixels, as_info(grid, kept, padding), grid)
        frames = [frame for clip in kept for frame in clip]
        assert gazed.positions.tolist() == [position for frame in frames for position in frame]
        assert gazed.frame_counts.tolist() == [len(frame) for frame in frames]
        assert gazed.clip_frames.tolist() == [3, 3, 3, 3]
        assert gazed.timestamps.tolist() == [0.0] * 12
        assert gazed.pictures.tolist() == list(range(12))
        assert len(gazed) == sum(map(len, frames))
        assert gazed.total_patches == 12 * grid.size
        everything = all_patches(pixels.flatten(0, 1), grid)
        expected = torch.cat([everything[number, frame] for number, frame in enumerate(frames)])
        assert torch.allclose(gazed.patches, expected, atol=1e-6)


def test_nothing_kept() -> None:
    gazed = GazedVideo.from_info(noise(1, 2, 3, 64, 64), as_info(SMALL, [[[], []]]), SMALL)
    assert (len(gazed), gazed.patches.shape, gazed.frame_counts.tolist()) == (0, (0, 768), [0, 0])


def test_selection_that_does_not_fit_the_pixels() -> None:
    info = as_info(SMALL, [[[1], [2]]])
    for shape in ((2, 2), (1, 3)):
        with pytest.raises(InputError, match=rf"1 clips x 2 frames, the pixels have {shape[0]} x {shape[1]}"):
            GazedVideo.from_info(noise(*shape, 3, 64, 64), info, SMALL)
    pixels = noise(1, 2, 3, 64, 64)
    with pytest.raises(InputError, match="lies outside frame 1"):
        GazedVideo.from_info(pixels, info | {"gazing_pos": torch.tensor([[1, 2]])}, SMALL)
    with pytest.raises(InputError, match="do not fit together"):
        GazedVideo.from_info(pixels, info | {"num_gazing_each_frame": torch.tensor([1, 2])}, SMALL)
    with pytest.raises(InputError, match="grid mismatch"):
        GazedVideo.from_info(pixels, AllSelector().select(pixels, SMALL, 1.0, None), GRIDS["wide"])


def one_clip(frames: int = 2, seed: int = 0) -> GazedVideo:
    info = as_info(SMALL, random_kept(SMALL, 1, frames, 6, seed))
    return GazedVideo.from_info(noise(1, frames, 3, 64, 64), info, SMALL, torch.arange(frames) / 10)


def test_concatenate() -> None:
    parts = [one_clip(2), one_clip(3, seed=1), one_clip(1, seed=2)]
    joined = GazedVideo.concatenate(parts)
    assert joined.clip_frames.tolist() == [2, 3, 1]
    assert joined.pictures.tolist() == [0, 1, 0, 1, 2, 0]
    assert joined.timestamps.tolist() == pytest.approx([0, 0.1, 0, 0.1, 0.2, 0])
    assert torch.equal(joined.patches, torch.cat([part.patches for part in parts]))
    assert torch.equal(joined.positions, torch.cat([part.positions for part in parts]))
    assert torch.equal(joined.frame_counts, torch.cat([part.frame_counts for part in parts]))
    assert (joined.grid, joined.stats) == (SMALL, {})
    other = GRIDS["wide"]
    stranger = GazedVideo.from_info(noise(1, 1, 3, 64, 64), as_info(other, [[[1]]]), other)
    with pytest.raises(InputError, match="grid mismatch"):
        GazedVideo.concatenate([parts[0], stranger])
    with pytest.raises(InputError, match="no clip was gazed"):
        GazedVideo.concatenate([])


def test_to() -> None:
    gazed = one_clip()
    half = gazed.to(dtype=torch.bfloat16)
    assert half.patches.dtype == torch.bfloat16
    assert torch.equal(half.positions, gazed.positions)
    assert gazed.patches.dtype == torch.float32
    assert (len(half), half.grid) == (len(gazed), gazed.grid)


@pytest.mark.cuda
def test_to_another_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    away = one_clip().to("cuda")
    parts = (away.patches, away.positions, away.frame_counts, away.clip_frames, away.timestamps)
    assert {part.device.type for part in parts} == {"cuda"}


@pytest.mark.parametrize(
    "broken",
    [
        {"positions": torch.zeros(3, dtype=torch.long)},
        {"patches": torch.zeros(2, 768)},
        {"frame_counts": torch.tensor([1, 1])},
        {"clip_frames": torch.tensor([1, 2])},
        {"timestamps": torch.zeros(3)},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together(broken: dict[str, torch.Tensor]) -> None:
    parts = {
        "patches": torch.zeros(4, 768),
        "positions": torch.zeros(4, dtype=torch.long),
        "frame_counts": torch.tensor([1, 3]),
        "clip_frames": torch.tensor([2]),
        "grid": SMALL,
        "timestamps": torch.zeros(2),
    }
    assert len(GazedVideo(**parts)) == 4  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gazed video"):
        GazedVideo(**parts | broken)  # type: ignore[arg-type]


# From a file


def test_a_video_file(clip: Path) -> None:
    """Chunk by chunk, each of them gazed anew; the last one is shorter."""
    for selector in (PixelDiffSelector(), RandomSelector(3)):
        gazed = gaze_video(clip, selector, VideoSettings(frames=20, ratio=0.2), grid=SMALL)
        assert gazed.clip_frames.tolist() == [16, 4]
        assert gazed.timestamps.tolist() == pytest.approx(np.arange(20) / 10)
        parts = []
        for chunk in VideoReader(clip).read():
            frames = resize_frames(chunk.frames, 64, 64, torch.device("cpu"))[None].float() / 255
            info = selector.select(frames, SMALL, 0.2, selector.default_loss)
            parts.append(GazedVideo.from_info(frames * 2 - 1, info, SMALL))
        expected = GazedVideo.concatenate(parts)
        assert torch.equal(gazed.positions, expected.positions)
        assert torch.equal(gazed.frame_counts, expected.frame_counts)
        assert torch.allclose(gazed.patches, expected.patches, atol=1e-6)


def test_numbers_about_it(clip: Path) -> None:
    gazed = gaze_video(str(clip), "random", VideoSettings(frames=8, ratio=0.1))
    wanted = {
        "source": str(clip),
        "frames": 8,
        "frames_lost": 0,
        "patches": 8 * 26,
        "patches_total": 8 * 265,
        "selector": "random",
    }
    assert {name: gazed.stats[name] for name in wanted} == wanted
    assert {"decode", "resize", "gaze", "gather"} <= set(gazed.stats["seconds"])
    assert all(value >= 0 for value in gazed.stats["seconds"].values())
    assert gazed.grid == PatchGrid.of("32+64+112+224", 16)


def test_frames_are_evenly_spread(clip: Path) -> None:
    gazed = gaze_video(clip, "random", VideoSettings(frames=5, ratio=0.1), grid=SMALL)
    assert gazed.timestamps.tolist() == pytest.approx([0, 0.5, 1.0, 1.4, 1.9], abs=1e-3)
    assert gaze_video(clip, "random", VideoSettings(frames=500), grid=SMALL).stats["frames"] == 20


def test_ratio_of_each_frame_of_a_chunk(clip: Path) -> None:
    ratio = tuple(number / 20 + 0.01 for number in range(1, 9))
    gazed = gaze_video(clip, "random", VideoSettings(frames=20, chunk_frames=8, ratio=ratio), grid=SMALL)
    assert gazed.clip_frames.tolist() == [8, 8, 4]
    assert gazed.frame_counts.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] * 2 + [1, 2, 3, 4]


def test_stop_rule(clip: Path) -> None:
    def patches(loss: float | None) -> int:
        return len(gaze_video(clip, "pixel-diff", VideoSettings(frames=6, ratio=1.0, loss=loss), grid=SMALL))

    assert patches(0.3) < patches(None) < patches(0)
    assert patches(None) == patches(PixelDiffSelector().default_loss)


def test_grid_of_the_gaze_model(clip: Path) -> None:
    model = SELECTORS["AutoGaze"]
    settings = VideoSettings(frames=4, ratio=0.3, loss=0)
    gazed = gaze_video(clip, model, settings)
    assert gazed.grid == model.grid == SMALL  # type: ignore[attr-defined]
    assert gazed.frame_counts.tolist() == [6, 6, 6, 6]
    assert gazed.stats["selector"] == "AutoGaze"
    other = GRIDS["wide"]
    assert gaze_video(clip, model, settings, grid=other).grid == other


def test_listener(clip: Path) -> None:
    heard: list[GazedChunk] = []
    grid = GRIDS["wide"]
    settings = VideoSettings(frames=20, chunk_frames=8, ratio=0.2)
    gazed = gaze_video(clip, "random", settings, grid=grid, listener=heard.append)
    assert [chunk.pictures.shape for chunk in heard] == [(n, 3, 48, 128) for n in (8, 8, 4)]
    assert all(chunk.pictures.dtype == torch.uint8 for chunk in heard)
    kept = [frame.nonzero()[:, 0] for chunk in heard for frame in torch.cat(chunk.masks, dim=2)[0]]
    assert torch.equal(torch.cat(kept), gazed.positions)
    assert gazed.frame_counts.tolist() == [len(frame) for frame in kept]


@pytest.mark.parametrize("pixels", [None, PixelFormat((0.2, 0.4, 0.6), (0.1, 0.5, 0.25))])
def test_values_are_those_the_tower_wants(tmp_path: Path, pixels: PixelFormat | None) -> None:
    colour = (204, 102, 51)
    frames = [np.full((96, 160, 3), colour, dtype=np.uint8)] * 3
    write_video(tmp_path / "clip.mp4", frames, 10, options={"crf": "1"})
    gazed = gaze_video(tmp_path / "clip.mp4", "all", VideoSettings(frames=3), grid=SMALL, pixels=pixels)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if pixels is None else (pixels.mean, pixels.std)
    for channel, values in enumerate(gazed.patches.unflatten(1, (3, -1)).unbind(1)):
        wanted = (colour[channel] / 255 - mean[channel]) / std[channel]
        assert float((values - wanted).abs().max()) < 0.02 / std[channel]


def test_precision(clip: Path) -> None:
    gazed = gaze_video(clip, "random", VideoSettings(frames=2), grid=SMALL, dtype=torch.bfloat16)
    assert (gazed.patches.dtype, gazed.positions.dtype) == (torch.bfloat16, torch.int64)


def test_lost_frames_are_counted(tmp_path: Path) -> None:
    path = wipe_packet(encode(tmp_path / "clip.mov", numbered_frames(20), codec="mjpeg", pix_fmt="yuvj420p", fps=10), 7)
    heard: list[int] = []
    gazed = gaze_video(
        path,
        "random",
        VideoSettings(frames=20, ratio=0.2),
        grid=SMALL,
        listener=lambda chunk: heard.append(len(chunk.pictures)),
    )
    assert (gazed.stats["frames"], gazed.stats["frames_lost"]) == (19, 1)
    assert heard == gazed.clip_frames.tolist() == [16, 3]
    assert gazed.timestamps.tolist() == pytest.approx([number / 10 for number in range(20) if number != 7])
    with pytest.raises(InputError, match="could be decoded"):
        gaze_video(wipe_packet(path, 0), "random", VideoSettings(frames=1), grid=SMALL)


def test_progress_is_shown_when_asked_for(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaze_video(clip, "random", VideoSettings(frames=4), grid=SMALL)
    assert capsys.readouterr() == ("", "")
    gaze_video(clip, "random", VideoSettings(frames=4), grid=SMALL, progress=True)
    output, errors = capsys.readouterr()
    assert output == ""
    assert "gazing" in errors


def test_no_file_and_no_selector(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.mp4: no such file"):
        gaze_video(tmp_path / "missing.mp4")
    with pytest.raises(InputError, match="gaze=42"):
        gaze_video(clip, 42)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"frames": 0},
        {"chunk_frames": 0},
        {"ratio": 0.0},
        {"ratio": 1.5},
        {"ratio": ()},
        {"ratio": (0.5, 0.0)},
        {"ratio": (0.5, 0.5)},
        {"loss": -1.0},
        {"loss": float("nan")},
        {"ratio": float("nan")},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        VideoSettings(**settings)


def test_resize_frames() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 90, 160, 3), dtype=np.uint8)
    cpu = torch.device("cpu")
    same = resize_frames(frames, 90, 160, cpu)
    assert torch.equal(same.permute(0, 2, 3, 1), torch.from_numpy(frames))
    small = resize_frames(frames, 9, 16, cpu)
    # A small picture of noise is nearly grey: what lies between the sampled pixels counts as well.
    assert (small.shape, small.dtype) == ((2, 3, 9, 16), torch.uint8)
    assert float(small.float().std()) < 0.2 * float(same.float().std())
    # Edges overshoot when they are enlarged; nothing wraps around.
    half = np.zeros((1, 20, 20, 3), dtype=np.uint8)
    half[:, :, 10:] = 255
    large = resize_frames(half, 61, 61, cpu)
    assert int(large[..., :25].max()) < 40
    assert int(large[..., 36:].min()) > 215


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patch_store_gives_back_what_was_added(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatchStore, "STEP", 1000)
    store = PatchStore()
    parts = [torch.randn(n, 12).to(dtype) for n in (3, 0, 50, 1, 200)]
    for part in parts:
        store.add(part)
    assert torch.equal(store.take(), torch.cat(parts))
    store.add(parts[0])
    assert torch.equal(store.take(), parts[0])


@pytest.mark.parametrize("most", [1, 7, 30, 10_000])
def test_clip_groups_are_the_clips_in_order(clip: Path, most: int) -> None:
    video = gaze_video(clip, "pixel-diff", VideoSettings(frames=9, chunk_frames=4, thumbnails=2, ratio=0.1))
    groups = list(video.clip_groups(most))
    for name in ("patches", "positions", "frame_counts", "clip_frames", "timestamps", "pictures"):
        assert torch.equal(torch.cat([getattr(group, name) for group in groups]), getattr(video, name))
    assert sum(group.thumbnails for group in groups) == 2
    assert all(len(group) <= most or len(group.clip_frames) == 1 for group in groups)
