"""Frames as the published helpers give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from autogaze_mllm import InputError
from autogaze_mllm.published import (
    AutoGazeImageProcessor,
    process_video_frames,
    read_video_pyav,
    sample_frame_indices,
    transform_video_for_pytorch,
)

from ..helpers.golden_data import load


def test_frames_by_their_numbers(clip: Path) -> None:
    with av.open(str(clip)) as container:
        every = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(clip)) as container:
        for wanted in ([3, 4, 9], range(5), [19], [9, 3, 3], np.array([18, 19, 20, 21])):
            there = sorted({int(number) for number in wanted if number < len(every)})
            assert np.array_equal(read_video_pyav(container, wanted), every[there])
            assert np.array_equal(read_video_pyav(container=container, indices=wanted), every[there])
        for wrong, said in (([40], "none of the frames 40 to 40"), ([], "from 0 on"), ([-1], "from 0 on")):
            with pytest.raises(InputError, match=said):
                read_video_pyav(container, wrong)


def test_what_cannot_be_decoded_is_one_line(tmp_path: Path) -> None:
    cut = tmp_path / "sound.wav"
    with av.open(str(cut), "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
    with av.open(str(cut)) as container, pytest.raises(InputError, match=r"sound\.wav: .* no video stream"):
        read_video_pyav(container, [0])


@pytest.mark.parametrize("case", load("data")[0]["frame_indices"], ids=str)
def test_which_frames_a_clip_has(case: dict[str, Any]) -> None:
    found = sample_frame_indices(case["clip_len"], case["stride"], case["total"])
    assert found.tolist() == case["indices"] and found.dtype == np.int64


def test_random_clips_follow_numpys_generator() -> None:
    def draw(seed: int) -> list[list[int]]:
        np.random.seed(seed)
        return [sample_frame_indices(4, 2, 100, random_sample_frame=True).tolist() for _ in range(3)]

    assert draw(1) == draw(1) != draw(2)
    assert len({tuple(one) for one in draw(1)}) > 1
    with pytest.raises(InputError, match="at least 1"):
        sample_frame_indices(0, 1, 9)


def test_clips_of_one_length() -> None:
    frames = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    assert process_video_frames(frames, 5)[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 2]
    assert process_video_frames(frames, 2)[:, 0, 0, 0].tolist() == [0, 1]
    for wrong, length in ((frames[:0], 3), (frames[0], 3), (frames, 0)):
        with pytest.raises(InputError, match="expected frames"):
            process_video_frames(wrong, length)


def test_any_image_processor_gives_a_tensor() -> None:
    """Those of transformers answer with a list of frames, AutoGaze's with a list of videos."""
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    gaze = transform_video_for_pytorch(frames, AutoGazeImageProcessor(size=(32, 32)))
    siglip = transform_video_for_pytorch(frames, SiglipImageProcessorPil(size={"height": 32, "width": 32}))
    assert gaze.shape == siglip.shape == (3, 3, 32, 32) and gaze.dtype == siglip.dtype == torch.float32
    assert not torch.equal(gaze[0], gaze[1]) and -1 <= float(siglip.min()) < 0 < float(siglip.max()) <= 1
    raw = transform_video_for_pytorch(frames)
    assert torch.equal(raw, torch.from_numpy(frames).permute(0, 3, 1, 2))
    single = transform_video_for_pytorch(frames[:1], AutoGazeImageProcessor(size=(32, 32)))
    assert torch.equal(single[0], gaze[0])
    with pytest.raises(InputError, match="three channels"):
        transform_video_for_pytorch(frames[..., :2])
