"""What the published quick start does, step by step, with nothing of it changed but the import lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..helpers.files.published_folders import small_gaze, write_siglip

WALK = """
import av
import torch
from autogaze_mllm.published import read_video_pyav, transform_video_for_pytorch
from autogaze_mllm.published import AutoGazeImageProcessor, AutoGaze

autogaze_transform = AutoGazeImageProcessor.from_pretrained("nvidia/AutoGaze")
autogaze_model = AutoGaze.from_pretrained("nvidia/AutoGaze")
container = av.open("clip.mp4")
raw_video = read_video_pyav(container=container, indices=list(range(autogaze_model.config.max_num_frames)))
container.close()
pixels = transform_video_for_pytorch(raw_video, autogaze_transform)[None]
with torch.inference_mode():
    outputs = autogaze_model({"video": pixels}, gazing_ratio=0.1, task_loss_requirement=-9.0)
entries = outputs["gazing_pos"].shape
padded = outputs["if_padded_gazing"]
per_frame = outputs["num_gazing_each_frame"]

from transformers import AutoImageProcessor
from autogaze_mllm.published import SiglipVisionModel

siglip_transform = AutoImageProcessor.from_pretrained("google/siglip2-base-patch16-224")
siglip_model = SiglipVisionModel.from_pretrained(
    "google/siglip2-base-patch16-224", scales=autogaze_model.config.scales, attn_implementation="sdpa"
)
siglip_pixels = transform_video_for_pytorch(raw_video, siglip_transform)[None]
siglip_outputs = siglip_model(siglip_pixels, gazing_info=outputs)
features = [f[~p] for f, p in zip(siglip_outputs.last_hidden_state, outputs["if_padded_gazing"])]

# Another resolution and patch size
transform_392 = AutoGazeImageProcessor.from_pretrained("nvidia/AutoGaze", size=(392, 392))
pixels_392 = transform_video_for_pytorch(raw_video[:2], transform_392)[None]
with torch.inference_mode():
    outputs_392 = autogaze_model(
        {"video": pixels_392}, gazing_ratio=0.1, task_loss_requirement=0.7,
        target_scales=[56, 112, 196, 392], target_patch_size=14,
    )
siglip_384_transform = AutoImageProcessor.from_pretrained("google/siglip2-so400m-patch14-384")
siglip_384 = SiglipVisionModel.from_pretrained(
    "google/siglip2-so400m-patch14-384", scales="56+112+196+392", attn_implementation="sdpa"
)
pixels_384 = transform_video_for_pytorch(raw_video[:2], siglip_384_transform)[None]
siglip_outputs_384 = siglip_384(pixels_384, gazing_info=outputs_392)

# A large video in pieces
large = torch.randn(1, 4, 3, 448, 448).reshape(1, 2, 2, 3, 2, 224, 2, 224).permute(0, 1, 4, 6, 2, 3, 5, 7)
pieces = large.reshape(8, 2, 3, 224, 224)
with torch.inference_mode():
    outputs_pieces = autogaze_model({"video": pieces}, gazing_ratio=0.05, task_loss_requirement=0.7)
siglip_pieces = siglip_model(pieces, gazing_info=outputs_pieces)

# Frame by frame
with torch.inference_mode():
    whole = autogaze_model({"video": pixels[:, :4]}, gazing_ratio=0.1)
streamed = []
past_inputs_embeds = past_attention_mask = past_key_values = past_conv_values = None
for t in range(4):
    one = autogaze_model(
        {"video": pixels[:, t : t + 1]}, gazing_ratio=0.1, generate_only=True, use_cache=True,
        past_key_values=past_key_values, past_inputs_embeds=past_inputs_embeds,
        past_attention_mask=past_attention_mask, past_conv_values=past_conv_values,
    )
    streamed.append(one["gazing_pos"] + autogaze_model.num_vision_tokens_each_frame * t)
    past_key_values, past_inputs_embeds = one["past_key_values"], one["past_input_embeds"]
    past_attention_mask, past_conv_values = one["past_attention_mask"], one["past_conv_values"]
streamed = torch.cat(streamed, dim=1)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("quick start")
    small_gaze().save_pretrained(folder / "nvidia" / "AutoGaze")
    write_siglip(folder / "google" / "siglip2-base-patch16-224", 224, 16)
    write_siglip(folder / "google" / "siglip2-so400m-patch14-384", 384, 14)
    (folder / "clip.mp4").symlink_to(clip)
    return folder


def test_the_published_quick_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found: dict = {}
    exec(compile(WALK, "quick start", "exec"), found)
    assert found["pixels"].shape == (1, 16, 3, 224, 373)  # the short side 224, as the folder says
    assert found["entries"] == found["padded"].shape == (1, 16 * 26)  # 26 of 265 patches are a tenth
    assert found["per_frame"].tolist() == [26] * 16 and not found["padded"].any()
    assert found["siglip_outputs"].last_hidden_state.shape == (1, 16 * 26, 32)
    assert found["features"][0].shape == (16 * 26, 32)
    assert found["pixels_392"].shape == (1, 2, 3, 392, 392)
    assert found["outputs_392"]["num_vision_tokens_each_frame"] == 16 + 64 + 196 + 784
    entries = found["outputs_392"]["gazing_pos"].shape
    assert found["siglip_outputs_384"].last_hidden_state.shape == (*entries, 32) and entries[1] >= 8
    assert found["siglip_pieces"].last_hidden_state.shape == (*found["outputs_pieces"]["gazing_pos"].shape, 32)
    assert found["whole"]["gazing_pos"].equal(found["streamed"])
