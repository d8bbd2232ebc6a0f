"""The plain reference reproduces the published results, coupled rows included, so that it can stand for them."""

from __future__ import annotations

import pytest
import torch

from reference_decoder import Reference, Result

from ...helpers.golden_data import Tensors, assert_close, cases, load, part, video, weights

NATIVE = [(name, case) for name, case in cases("gaze_", "call") if "target_scales" not in case["call"]]


def label(value: object) -> str:
    return value["name"] if isinstance(value, dict) else str(value)


def reference(name: str) -> Reference:
    return Reference(load(name)[0]["config"], weights(name))


def limits(case: dict, frames: int, size: int) -> tuple[list[int], float | list | None]:
    ratio = case["call"].get("gazing_ratio", 1.0)
    ratios = torch.as_tensor(ratio, dtype=torch.float32).expand(frames)
    return (ratios * size).long().clamp(min=1).tolist(), case["call"].get("task_loss_requirement")


def generate(ref: Reference, case: dict, pixels: torch.Tensor, state=None) -> Result:
    frames = pixels.shape[1] // ref.vision["temporal_patch_size"]
    budgets, need = limits(case, frames, ref.size)
    if need is not None:
        need = torch.as_tensor(need, dtype=torch.float32).expand(len(pixels), frames)
    return ref.generate(pixels, budgets, need, state)


def assert_selection(result: Result, expected: Tensors, size: int) -> None:
    offset = torch.repeat_interleave(torch.arange(len(result.counts)), torch.tensor(result.counts)) * size
    assert result.counts == expected["num_gazing_each_frame"].tolist()
    assert torch.equal(result.ids + offset, expected["gazing_pos"].long())
    assert torch.equal(result.ids == size, expected["if_padded_gazing"].bool())


@pytest.mark.parametrize(("name", "case"), NATIVE, ids=label)
def test_generation(name: str, case: dict) -> None:
    ref, expected = reference(name), part(load(name)[1], f"{case['name']}/")
    result = generate(ref, case, video(name, case["video"]))
    assert_selection(result, expected, ref.size)
    assert result.margin == pytest.approx(case["smallest_decision_margin"], abs=1e-5)
    calls = case.get("decoder_calls", [])[:-1]  # the last one is the scoring pass
    assert len(calls) in (0, len(result.evaluations))
    for run, call in zip(result.evaluations, calls, strict=False):
        assert run.positions.tolist() == call["position_ids"]
        assert ["".join(map(str, row)) for row in run.mask.tolist()] == call["key_mask"]
        assert (run.ids is None) == (call["kind"] == "embeds")
        assert run.ids is None or run.ids.tolist() == call["ids"]
    if calls:
        logits = torch.stack([run.logits.flatten(1) for run in result.evaluations])
        assert_close(logits, expected["debug_step_logits"], what="logits")
        assert_close(torch.stack([run.losses for run in result.evaluations]), expected["debug_step_task_loss"])
    if "log_action_probs" in expected:
        log_probs, losses = ref.score(video(name, case["video"]), result.ids, result.counts)
        assert_close(log_probs, expected["log_action_probs"], 5e-5, "log_action_probs")
        assert_close(losses, expected["task_loss_prediction"], what="task_loss_prediction")


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "stream"), ids=label)
def test_streaming(name: str, case: dict) -> None:
    ref, pixels, state = reference(name), video(name, case["video"]), None
    expected = part(load(name)[1], f"{case['name']}/")
    for number, frames in enumerate(pixels.split(case["chunks"], dim=1)):
        result, want = generate(ref, case, frames, state), part(expected, f"chunk{number}/")
        state = result.state
        assert_selection(result, want, ref.size)
        assert torch.equal(state.mask, want["state_key_mask"].long())
        assert_close(state.unfed, want["state_unfed_embeds"], what="unfed")
        for block, conv in enumerate(state.conv):
            assert_close(conv, want[f"state_conv_{block}"], what="conv")
    for layer in range(len(state.keys)):
        assert_close(state.keys[layer], expected[f"final_cache_key_{layer}"], what="keys")
        assert_close(state.values[layer], expected[f"final_cache_value_{layer}"], what="values")


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "labels"), ids=label)
def test_scores_of_labels(name: str, case: dict) -> None:
    ref, tensors = reference(name), load(name)[1]
    given, expected = part(tensors, f"inputs/{case['name']}/"), part(tensors, f"{case['name']}/")
    counts = given["num_gazing_each_frame"]
    offset = torch.repeat_interleave(torch.arange(len(counts)), counts) * ref.size
    ids = (given["gazing_pos"].long() - offset).masked_fill(given["if_padded_gazing"].bool(), ref.size)
    log_probs, losses = ref.score(video(name, case["video"]), ids, counts.tolist())
    assert_close(log_probs, expected["log_action_probs"], 5e-5)
    assert_close(losses, expected["task_loss_prediction"])
