"""The gaze model against results of the published code."""

from __future__ import annotations

from dataclasses import dataclass, field

import PIL
import pytest
import torch

from autogaze_mllm.common.pixels import resize_bicubic
from autogaze_mllm.gaze.autogaze.decoding.generation import Sampling, choose_patches
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.autogaze.processor import AutoGazeImageProcessor
from autogaze_mllm.gaze.grid import mask_to_positions
from autogaze_mllm.gaze.ratio import patches_per_frame
from reference_decoder import Reference, assert_rows, assert_state

from ...helpers.golden_data import (
    Tensors,
    assert_close,
    call_arguments,
    cases,
    gaze_model,
    independent_rows,
    label,
    load,
    names,
    part,
    video,
    weights,
)


def outputs(name: str, case: dict) -> Tensors:
    return part(load(name)[1], f"{case['name']}/")


def assert_scores(model: AutoGaze, pixels: torch.Tensor, selection: Tensors, expected: Tensors) -> None:
    log_probs, losses = model.score(pixels, selection)
    assert_close(log_probs, expected["log_action_probs"], 5e-5, "log_action_probs")
    assert_close(losses, expected["task_loss_prediction"], what="task_loss_prediction")


@pytest.mark.parametrize("name", [name for name in names("gaze_") if "debug/vision_tokens" in load(name)[1]])
def test_vision_tokens(name: str) -> None:
    assert_close(gaze_model(name).encode_frames(video(name))[0], load(name)[1]["debug/vision_tokens"])


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "call", "default"), ids=label)
def test_selection(name: str, case: dict) -> None:
    model, pixels, published = gaze_model(name), video(name, case["video"]), outputs(name, case)
    info = model.generate(pixels, **call_arguments(case))

    expected = independent_rows(name, case["name"]) or published
    for key in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame"):
        assert info[key].tolist() == expected[key].to(info[key].dtype).tolist(), key
    assert info.num_vision_tokens_each_frame == case.get("num_vision_tokens_each_frame", model.grid.size)
    mask = torch.cat(info.gazing_mask, dim=2).flatten(1)
    assert [row.nonzero()[:, 0].tolist() for row in mask] == [
        sorted(row[~padded].tolist()) for row, padded in zip(info.gazing_pos, info.if_padded_gazing, strict=True)
    ]
    if expected is published:
        for scale, scale_mask in enumerate(info.gazing_mask):
            assert torch.equal(scale_mask.bool(), published[f"gazing_mask_{scale}"].bool())

    # With tiles, the published requirement is per tile; ours is that of the clip, and the tiles keep theirs.
    need = (info if info.tiles is None else info.tiles).task_loss_requirement
    assert (need is None) == ("task_loss_requirement" not in published)
    assert need is None or torch.equal(need, published["task_loss_requirement"])
    if "log_action_probs" in published:
        assert_scores(model, pixels, published, published)


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "labels"), ids=label)
def test_scores_of_labels(name: str, case: dict) -> None:
    labels = part(load(name)[1], f"inputs/{case['name']}/")
    assert (labels["gazing_pos"] < 0).any(), "padded entries of labels hold -1"
    assert_scores(gaze_model(name), video(name, case["video"]), labels, outputs(name, case))


def stream(model: AutoGaze, name: str, case: dict):
    state = None
    for number, frames in enumerate(video(name, case["video"]).split(case["chunks"], dim=1)):
        info = model.generate(frames, **call_arguments(case), state=state, return_state=True)
        state = info.state
        yield frames, info, part(outputs(name, case), f"chunk{number}/")


UNCOUPLED = [(name, case) for name, case in cases("gaze_", "stream") if "task_loss_requirement" not in case["call"]]


@pytest.mark.parametrize(("name", "case"), UNCOUPLED, ids=label)
def test_streaming(name: str, case: dict) -> None:
    """Without a requirement rows are never coupled, so ids, caches and state are the published ones."""
    model, info = gaze_model(name), None
    embedding = weights(name)["gazing_model.gaze_decoder.model.embed_tokens.weight"]
    for _, info, expected in stream(model, name, case):
        assert torch.equal(info.gazing_pos, expected["gazing_pos"].long())
        assert not info.if_padded_gazing.any()
        assert int(info.state.unfed_counts.max()) == expected["state_unfed_embeds"].shape[1]
        assert torch.equal(embedding[info.state.unfed[:, : info.state.unfed_counts[0]]], expected["state_unfed_embeds"])
        assert_close(info.state.conv[0], expected["state_conv_0"])
    caches = outputs(name, case)
    for layer, (keys, values) in enumerate(zip(info.state.keys, info.state.values, strict=True)):
        assert_close(keys, caches[f"final_cache_key_{layer}"], what="keys")
        assert_close(values, caches[f"final_cache_value_{layer}"], what="values")
    assert info.state.lengths.tolist() == [keys.shape[2]] * len(keys)


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "stream"), ids=label)
def test_streaming_rows_alone(name: str, case: dict) -> None:
    model, reference = gaze_model(name), Reference(load(name)[0]["config"], weights(name))
    call, states = call_arguments(case), [None, None]
    for frames, info, _ in stream(model, name, case):
        budgets = patches_per_frame(call["gazing_ratio"], reference.size, 1, frames.shape[1])[0].tolist()
        need = call.get("task_loss_requirement")
        need = None if need is None else torch.full((1, frames.shape[1]), need)
        alone = [reference.generate(frames[[row]], budgets, need, states[row]) for row in range(len(frames))]
        states = [result.state for result in alone]
        assert_rows(info, alone, reference.size)
        assert_state(info.state, alone, reference.embedding, 1e-5)


@dataclass(frozen=True)
class Replay(Sampling):
    """Draws what was drawn before, and keeps the distributions it was asked to draw from."""

    choices: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    budget: int = 0
    step: int = 1
    seen: list[torch.Tensor] = field(default_factory=list)
    surplus: list[torch.Tensor] = field(default_factory=list)

    def draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        # The heads of a frame's last step that are beyond its budget are drawn too, and thrown away.
        per_frame = -(-self.budget // self.step) * self.step
        if (len(self.seen) + len(self.surplus)) % per_frame >= self.budget:
            self.surplus.append(probabilities)
            return torch.zeros(len(probabilities), dtype=torch.long)
        self.seen.append(probabilities)
        return self.choices[len(self.seen) - 1].long()


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "sample"), ids=label)
def test_sampling(name: str, case: dict) -> None:
    """The published training code draws from the 50 best ids of each head."""
    model, expected, pixels = gaze_model(name), outputs(name, case), video(name, case["video"])
    call, tokens = case["call"], model.encode_frames(pixels)
    budgets = patches_per_frame(call["gazing_ratio"], model.grid.size, *tokens[0].shape[:2])
    step = model.config.heads_per_step
    sampling = Replay(call["temperature"], 50, None, expected["draw_choice"], int(budgets[0, 0]), step)
    with torch.no_grad():
        choices = choose_patches(
            model.gazing_model.gaze_decoder,
            model.config,
            tokens[0],
            budgets,
            expected.get("task_loss_requirement"),
            sampling,
            None,
            tokens[1],
        )
    assert_close(torch.stack(sampling.seen), expected["draw_probs"], what="distributions")
    assert choices.counts == expected["num_gazing_each_frame"].tolist()
    assert torch.equal(choices.ids == model.config.end_id, expected["if_padded_gazing"].bool())
    frame = torch.repeat_interleave(torch.arange(len(choices.counts)), torch.tensor(choices.counts))
    assert torch.equal(choices.ids + frame * model.grid.size, expected["gazing_pos"].long())
    assert_scores(model, pixels, expected, expected)


def test_mask_to_positions() -> None:
    expected = part(load("data")[1], "mask_to_pos/")
    positions, padded = mask_to_positions(expected["mask"])
    assert torch.equal(positions, expected["gazing_pos"].long())
    assert torch.equal(padded, expected["if_padded_gazing"].bool())


@pytest.mark.parametrize("case", load("data")[0]["resize"], ids=label)
def test_bicubic_resize(case: dict) -> None:
    expected = part(load("data")[1], f"{case['name']}/")
    pixels = expected["input_i8"].float() / 32
    assert_close(resize_bicubic(pixels[None], *case["size"])[0], expected["output"])


@pytest.mark.parametrize("case", load("data")[0]["preprocess"], ids=label)
def test_image_preprocessing(case: dict) -> None:
    expected = part(load("data")[1], f"{case['name']}/")
    processor = AutoGazeImageProcessor.from_dict(case["saved"])
    found = processor(list(expected["frames_u8"].numpy()))
    if int(PIL.__version__.split(".")[0]) >= 13:
        assert_close(found, expected["pixel_values"])
    else:  # the data were made with Pillow 13, which may resize rows and columns in the other order, and rounds between
        level = processor.rescale_factor / min(processor.image_std)
        assert float((found - expected["pixel_values"]).abs().max()) <= 1.001 * level
    assert processor.to_dict() == case["saved"]


RAW = {"do_rescale": False, "offset": False}


@pytest.mark.parametrize("options", [{}, {"offset": False}, {"do_normalize": False}, RAW])
def test_normalizing_a_tensor_is_the_same_as_processing_an_image(options: dict) -> None:
    frames = load("data")[1]["image2/frames_u8"]
    processor = AutoGazeImageProcessor(do_resize=False, **options)
    assert_close(processor.normalize(frames.movedim(-1, 1) / 255), processor(list(frames.numpy())))
