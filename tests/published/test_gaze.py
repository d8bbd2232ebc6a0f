"""The gaze model called as the published one, against what the published one gave."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm import InputError
from autogaze_mllm.gaze.autogaze.processor import AutoGazeImageProcessor as OurProcessor
from autogaze_mllm.published import AutoGaze, AutoGazeImageProcessor

from ..helpers.files.published_folders import small_gaze, write_golden, write_siglip
from ..helpers.golden_data import assert_close, cases, independent_rows, label, load, names, part, video

KEYS = {
    "gazing_pos", "log_action_probs", "gazing_mask", "scales", "frame_sampling_rate", "num_vision_tokens_each_frame",
    "num_gazing_each_frame", "if_padded_gazing", "task_loss_prediction", "has_task_loss_requirement",
    "task_loss_requirement", "past_key_values", "past_input_embeds", "past_attention_mask", "past_conv_values",
}  # fmt: skip
PAST = {"past_key_values": "past_key_values", "past_inputs_embeds": "past_input_embeds",
        "past_attention_mask": "past_attention_mask", "past_conv_values": "past_conv_values"}  # fmt: skip


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Golden models, each loaded from a folder in the published layout."""
    folder = tmp_path_factory.mktemp("golden models")
    models = {name: AutoGaze.from_pretrained(write_golden(folder / name, name)) for name in names("gaze_")}
    return models.__getitem__


def expected(name: str, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    return part(load(name)[1], f"{case['name']}/")


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "call", "default"), ids=label)
def test_a_call_gives_what_the_published_one_gives(name: str, case: dict[str, Any], model_of: Any) -> None:
    model, published = model_of(name), expected(name, case)
    with torch.inference_mode():
        found = model({"video": video(name, case["video"])}, **case["call"])
    assert found.keys() >= KEYS
    chosen = independent_rows(name, case["name"])
    for key in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame"):
        assert found[key].tolist() == (chosen or published)[key].to(found[key].dtype).tolist(), key
    assert (found["log_action_probs"] is None) == case["call"].get("generate_only", False)
    if "log_action_probs" in published and chosen is None:  # where rows influence each other, they choose otherwise
        assert_close(found["log_action_probs"], published["log_action_probs"], 5e-5)
        assert_close(found["task_loss_prediction"], published["task_loss_prediction"])
        masks = [published[f"gazing_mask_{scale}"].bool() for scale in range(len(found["scales"]))]
        assert all(torch.equal(mine.bool(), mask) for mine, mask in zip(found["gazing_mask"], masks, strict=True))
    assert found["has_task_loss_requirement"] == (found["task_loss_requirement"] is not None)


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "labels"), ids=label)
def test_given_positions_are_scored(name: str, case: dict[str, Any], model_of: Any) -> None:
    model, published = model_of(name), expected(name, case)
    labels = part(load(name)[1], f"inputs/{case['name']}/")
    found = model({"video": video(name, case["video"])}, gazing_info=labels)
    assert_close(found["log_action_probs"], published["log_action_probs"], 5e-5)
    assert_close(found["task_loss_prediction"], published["task_loss_prediction"])
    assert found["gazing_pos"] is labels["gazing_pos"] and found.keys() >= KEYS
    kept = sum(int(mask.sum()) for mask in found["gazing_mask"])
    assert kept == int((labels["if_padded_gazing"] == 0).sum()) > 0
    found["log_action_probs"].sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
    model.zero_grad()


UNCOUPLED = [(name, case) for name, case in cases("gaze_", "stream") if "task_loss_requirement" not in case["call"]]


@pytest.mark.parametrize(("name", "case"), UNCOUPLED, ids=label)
def test_streaming_with_the_published_names(name: str, case: dict[str, Any], model_of: Any) -> None:
    model, past = model_of(name), dict.fromkeys(PAST)
    call = {key: value for key, value in case["call"].items() if key not in ("generate_only", "use_cache")}
    for number, frames in enumerate(video(name, case["video"]).split(case["chunks"], dim=1)):
        found = model({"video": frames}, **call, generate_only=True, use_cache=True, **past)
        published = part(expected(name, case), f"chunk{number}/")
        assert torch.equal(found["gazing_pos"], published["gazing_pos"].long())
        past = {given: found[name] for given, name in PAST.items()}
        assert_close(found["past_conv_values"][0], published["state_conv_0"])
        seen = found["past_attention_mask"].sum(dim=1)
        assert seen.tolist() == published["state_key_mask"].sum(dim=1).tolist()
        waiting = published["state_unfed_embeds"].shape[1]
        assert torch.equal(found["past_input_embeds"][:, :waiting], published["state_unfed_embeds"])


def test_parts_of_different_results_are_not_mixed(model_of: Any) -> None:
    model, frames = model_of("gaze_05_streaming"), video("gaze_05_streaming")[:, :1]
    call = {"gazing_ratio": 0.3, "generate_only": True, "use_cache": True}
    one, other = (model({"video": frames}, **call) for _ in range(2))
    past = {given: one[name] for given, name in PAST.items()}
    model({"video": frames}, **call, **past)
    for wrong in (past | {"past_conv_values": other["past_conv_values"]}, past | {"past_inputs_embeds": None}):
        with pytest.raises(InputError, match="all four"):
            model({"video": frames}, **call, **wrong)
    with pytest.raises(InputError, match="generate_only=True"):
        model({"video": frames}, **(call | {"generate_only": False}), **past)
    assert model({"video": frames}, gazing_ratio=0.3)["past_key_values"] is None


def test_another_grid_has_scores_too() -> None:
    model = AutoGaze(small_gaze().config).eval()
    pixels = torch.randn(1, 1, 3, 392, 392, generator=torch.Generator().manual_seed(0))
    call = {"gazing_ratio": 0.05, "target_scales": [56, 112, 196, 392], "target_patch_size": 14}
    found = model({"video": pixels}, **call)
    assert found["num_vision_tokens_each_frame"] == 1060 and found["scales"] == [56, 112, 196, 392]
    assert found["log_action_probs"].shape == found["gazing_pos"].shape
    again = model({"video": pixels}, target_scales=call["target_scales"], target_patch_size=14, gazing_info=found)
    assert_close(again["log_action_probs"], found["log_action_probs"].detach())


def test_given_positions_that_are_no_selection_are_refused(model_of: Any) -> None:
    name = "gaze_00_basic"
    model, inputs = model_of(name), {"video": video(name)}
    whole = model(inputs, gazing_ratio=0.3)
    for missing in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame"):
        with pytest.raises(InputError, match=f"gazing_info for the gaze model lacks {missing}"):
            model(inputs, gazing_info={key: value for key, value in whole.items() if key != missing})
    with pytest.raises(InputError, match="does not fit the video"):
        model({"video": video(name)[:, :1]}, gazing_info=whole)


def test_in_training_mode_choices_are_drawn() -> None:
    model = AutoGaze(small_gaze().config)
    pixels = torch.randn(1, 1, 3, 224, 224)
    draws = [model({"video": pixels}, gazing_ratio=0.1, temperature=2)["gazing_pos"].tolist() for _ in range(3)]
    assert len({str(one) for one in draws}) > 1
    # One patch a frame, drawn as good as evenly: of the 50 best, as the published code draws. Ours leaves none out.
    many = {"video": torch.zeros(300, 1, 3, 224, 224)}
    drawn = model(many, gazing_ratio=0.001, temperature=1e6, generate_only=True)["gazing_pos"]
    ours = model.generate(many["video"], 0.001, temperature=1e6).gazing_pos
    assert drawn.shape == (300, 1) and 40 < len(drawn.unique()) <= 50 < len(ours.unique())
    model.eval()
    greedy = [model({"video": pixels}, gazing_ratio=0.1)["gazing_pos"] for _ in range(2)]
    assert torch.equal(*greedy)


def test_attributes_of_the_published_model() -> None:
    model = AutoGaze(small_gaze(use_requirement_inference=True).config)
    assert model.scales == [32, 64, 112, 224] and model.num_vision_tokens_each_frame == 265
    assert model.num_vision_tokens_each_scale_each_frame == [4, 16, 49, 196] and model.frame_sampling_rate == 1
    config = model.config
    assert str(config.scales) == "32+64+112+224" and config.scales.split("+") == ["32", "64", "112", "224"]
    assert type(config).from_dict(config.to_dict()) == config and config.scales == (32, 64, 112, 224)
    inner = config.gaze_model_config
    assert config.max_num_frames == 16 and inner.input_img_size == 224 and inner.connector_config.num_tokens == 196
    assert inner.gaze_decoder_config.num_multi_token_pred == 10 and inner.vision_model_config.temporal_patch_size == 1
    assert config.gazing_ratio_config["fixed"]["gazing_ratio"] == 0.5
    assert config.gazing_ratio_each_frame_config["sample_strategy_during_inference"] == "uniform"
    assert config.task_loss_requirement_config["fixed"]["task_loss_requirement"] == 0.7
    assert config.has_task_loss_requirement_during_inference and not config.has_task_loss_requirement_during_training


def test_it_stands_wherever_our_own_model_does(clip: Path, tmp_path: Path) -> None:
    small_gaze().save_pretrained(tmp_path / "gaze")
    ours, theirs = am.AutoGaze.from_pretrained(tmp_path / "gaze"), AutoGaze.from_pretrained(tmp_path / "gaze")
    settings = am.VideoSettings(frames=3, ratio=0.1, loss=0.0)
    gazed = [am.gaze_video(clip, model, settings) for model in (ours, theirs, copy.deepcopy(theirs))]
    assert all(torch.equal(one.positions, gazed[0].positions) for one in gazed)
    assert theirs.identity() == ours.identity() and theirs.thread_safe  # so that one cache serves both
    theirs.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "gaze").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_our_own_class_says_how_it_is_called() -> None:
    with pytest.raises(InputError, match=r"call generate\(video, ...\); the published way"):
        small_gaze()({"video": torch.zeros(1, 1, 3, 224, 224)}, gazing_ratio=0.5)


def test_what_is_no_batch_is_refused_in_a_line() -> None:
    model = AutoGaze(small_gaze().config).eval()
    for wrong in (torch.zeros(1, 1, 3, 8, 8), {"clip": torch.zeros(1)}, {"video": [1]}):
        with pytest.raises(InputError, match='"video"'):
            model(wrong)
    with pytest.raises(TypeError, match="gaze_ratio"):
        model({"video": torch.zeros(1, 1, 3, 224, 224)}, gaze_ratio=0.5)


# The image processor


@pytest.mark.parametrize("case", load("data")[0]["preprocess"], ids=label)
def test_pixel_values(case: dict[str, Any], tmp_path: Path) -> None:
    golden = part(load("data")[1], f"{case['name']}/")
    ours = OurProcessor.from_dict(case["saved"])
    ours.save_pretrained(tmp_path)
    process, frames = AutoGazeImageProcessor.from_pretrained(tmp_path), list(golden["frames_u8"].numpy())
    found = process(frames, return_tensors="pt").pixel_values
    level = 1.001 * ours.rescale_factor / min(ours.image_std)  # by which other versions of Pillow round otherwise
    assert float((found - golden["pixel_values"][None]).abs().max()) <= level
    assert torch.equal(found[0], ours(frames))  # which tests/gaze/autogaze/test_golden.py compares with the version
    assert torch.equal(torch.from_numpy(process(frames).pixel_values[0][1]), found[0, 1])
    assert process([frames, frames], return_tensors="np")["pixel_values"].shape[:2] == (2, 2)
    process.save_pretrained(tmp_path / "again")
    assert AutoGazeImageProcessor.from_pretrained(tmp_path / "again") == process


def test_the_size_of_a_processor_can_be_said(tmp_path: Path) -> None:
    small_gaze().save_pretrained(tmp_path)
    frames = [torch.zeros(40, 60, 3, dtype=torch.uint8).numpy()]
    for source in (tmp_path, "bundled"):
        process = AutoGazeImageProcessor.from_pretrained(source, size=(392, 392))
        assert process(frames, return_tensors="pt").pixel_values.shape == (1, 1, 3, 392, 392)
        assert process(frames, return_tensors="pt", size=(32, 48)).pixel_values.shape[-2:] == (32, 48)
    with pytest.raises(InputError, match="unknown argument 'sise'"):
        AutoGazeImageProcessor.from_pretrained(tmp_path, sise=3)
    with pytest.raises(InputError, match="unknown argument sise"):
        process(frames, sise=3)
    with pytest.raises(InputError, match="no frames"):
        process([])
    with pytest.raises(InputError, match="'tf'"):
        process(frames, return_tensors="tf")
    with pytest.raises(InputError, match=r"no preprocessor_config\.json"):
        AutoGazeImageProcessor.from_pretrained(tmp_path / "..")
    with pytest.raises(InputError, match="image_processor_type is SiglipImageProcessor"):
        AutoGazeImageProcessor.from_pretrained(write_siglip(tmp_path / "siglip", 64, 16))
