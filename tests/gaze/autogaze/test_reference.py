"""The batched gaze model gives every row what a plain reference, run on that row alone, gives it."""

from __future__ import annotations

import copy
import random
from dataclasses import fields

import pytest
import torch

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.decoding.generation import GazeState
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.selection import GazingInfo
from reference_decoder import Reference, assert_rows, assert_state

from ...helpers.gaze_models import clip, config_dict, make, rows_alone, stopping_requirement
from ...helpers.golden_data import assert_close

UNSURE = 1e-5  # two float32 implementations may decide differently below this margin


def kept(info: GazingInfo, row: int) -> list[list[int]]:
    """Indices that a row keeps, frame by frame, in the order in which they were chosen."""
    pieces = zip(
        *(part[row].split(info.num_gazing_each_frame.tolist()) for part in (info.gazing_pos, info.if_padded_gazing)),
        strict=True,
    )
    return [(ids[~padded] - t * info.num_vision_tokens_each_frame).tolist() for t, (ids, padded) in enumerate(pieces)]


@pytest.mark.parametrize("seed", range(100, 300))
def test_random_configurations(seed: int) -> None:
    rng = random.Random(seed)
    config = config_dict(rng)
    model, reference = make(config, seed)
    batch, steps = rng.randint(1, 5), rng.randint(1, 4)
    tau = model.config.encoder.temporal_patch_size
    video = clip(config, batch, steps, extra=rng.randint(0, tau - 1))
    ratio = rng.choice([1.0, rng.random(), [rng.random() for _ in range(steps)]])
    shape = rng.choice([None, (1,), (1, steps), (batch, 1), (batch, steps)])
    need = None if shape is None else stopping_requirement(reference, video, rng, shape)

    whole_steps = video[:, : steps * tau]  # what is left over is ignored, but a streaming call would lose it
    positions = [model.generate(part, ratio, need).gazing_pos for part in (video, whole_steps)]
    assert torch.equal(*positions)
    info = model.generate(whole_steps, ratio, need, return_state=True)
    if video.shape[1] > steps * tau:
        with pytest.raises(InputError, match="multiple"):
            model.generate(video, ratio, need, return_state=True)
    alone = rows_alone(reference, video, ratio, need, steps)

    if min(result.margin for result in alone) < UNSURE:
        pytest.skip("a decision is too close for float32")
    assert_rows(info, alone, reference.size)
    assert_state(info.state, alone, reference.embedding, 1e-4)
    frame = torch.repeat_interleave(torch.arange(steps), info.num_gazing_each_frame)
    with torch.no_grad():
        scores = model.score(video, info)
    expected = reference.score(video, info.gazing_pos - frame * reference.size, info.num_gazing_each_frame.tolist())
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(60, 75))
def test_streaming_equals_one_call(seed: int) -> None:
    rng = random.Random(seed)
    config = config_dict(rng)
    model, reference = make(config, seed)
    video, steps, tau = clip(config, 3, 5), 5, model.config.encoder.temporal_patch_size
    need = stopping_requirement(reference, video, rng, (3, steps)) if seed % 4 else None
    whole = model.generate(video, 0.8, need, return_state=True)
    for chunks in ([1] * steps, [2, 3]):
        state, choices, done = None, [[], [], []], 0
        for count in chunks:
            wanted = None if need is None else need[:, done : done + count]
            frames = video[:, done * tau : (done + count) * tau]
            part = model.generate(frames, 0.8, wanted, state=state, return_state=True)
            state, done = part.state, done + count
            for row in range(3):
                choices[row] += kept(part, row)
        assert choices == [kept(whole, row) for row in range(3)]
        assert torch.equal(state.lengths, whole.state.lengths)
        assert torch.equal(state.unfed_counts, whole.state.unfed_counts)


def test_streaming_over_tiles(seven) -> None:
    model, _, _, _ = seven
    tau, ratio = model.config.encoder.temporal_patch_size, [0.3, 0.9, 0.6]
    video = torch.randn(2, 3 * tau, 3, 40, 64)
    target = {"target_scales": [(16, 24), (24, 40), (40, 64)], "target_patch_size": 8}
    whole, state, choices = model.generate(video, ratio, **target), None, []
    for t in range(3):
        part = model.generate(video[:, t * tau : t * tau + tau], ratio[t], **target, state=state, return_state=True)
        state = part.state
        choices += kept(part, 1)
    assert choices == kept(whole, 1)


def test_scores_have_the_gradients_of_the_reference(seven) -> None:
    model, reference, video, need = seven
    info = model.generate(video[:2], 0.9, need[:2])
    parameters = dict(model.named_parameters())
    twin = Reference(model.config.to_dict(), parameters)
    frame = torch.repeat_interleave(torch.arange(4), info.num_gazing_each_frame)
    ids, weight = info.gazing_pos - frame * reference.size, torch.randn(2, *info.gazing_pos.shape)
    mine, theirs = (
        torch.autograd.grad((torch.stack(scores) * weight).sum(), list(parameters.values()))
        for scores in (model.score(video[:2], info), twin.score(video[:2], ids, info.num_gazing_each_frame.tolist()))
    )
    for name, one, other in zip(parameters, mine, theirs, strict=True):
        assert float(other.abs().max()) > 0, name
        assert_close(one, other, 1e-4, name)


def test_single_token_steps_and_as_many_as_the_prompt() -> None:
    """K = 1 never leaves the prompt's last position, and K = P repeats the positions of the whole prompt."""
    for step in (1, 4):
        config = config_dict(random.Random(step), num_multi_token_pred=step)
        config["gaze_model_config"]["input_img_size"] = 16
        model, reference = make(config, step)
        video = clip(config, 2, 3)
        alone = rows_alone(reference, video, 1.0, None, 3)
        assert_rows(model.generate(video, 1.0), alone, reference.size)


@pytest.fixture(scope="module")
def seven() -> tuple[AutoGaze, Reference, torch.Tensor, torch.Tensor]:
    """A model, seven clips of four frames and requirements that stop every row somewhere else."""
    config = config_dict(random.Random(0), num_multi_token_pred=3)
    config |= {"scales": "8+16+32", "num_vision_tokens_each_frame": 21, "repeat_step_positions": True}
    config["gaze_model_config"]["vision_model_config"]["depth"] = 2
    model, reference = make(config, 0)
    video = clip(config, 7, 4)
    return model, reference, video, stopping_requirement(reference, video, random.Random(1), (7, 4))


def test_neighbours_do_not_matter(seven) -> None:
    model, _, video, need = seven
    together = model.generate(video, 0.9, need)
    counts = together.num_gazing_each_row
    assert (counts.amax(dim=0) > counts.amin(dim=0)).all(), "rows must stop at different steps"
    for row in range(7):
        alone = model.generate(video[[row]], 0.9, need[[row]])
        assert kept(alone, 0) == kept(together, row)
        never = torch.where(torch.arange(7)[:, None] == row, need, -1e9)  # every neighbour keeps its whole budget
        assert kept(model.generate(video, 0.9, never), row) == kept(alone, 0)


def snapshot(state: GazeState) -> list[torch.Tensor]:
    values = [value for entry in fields(state) if (value := getattr(state, entry.name)) is not None]
    return [tensor.clone() for value in values for tensor in (value if isinstance(value, tuple) else (value,))]


def test_state_is_never_changed(seven) -> None:
    model, _, video, need = seven
    tau = model.config.encoder.temporal_patch_size
    state = model.generate(video[:, : 2 * tau], 0.9, need[:, :2], return_state=True).state
    before = snapshot(state)
    first, second = (
        model.generate(video[:, 2 * tau :], 0.9, need[:, 2:], state=state, return_state=True) for _ in range(2)
    )
    assert all(torch.equal(*pair) for pair in zip(before, snapshot(state), strict=True))
    assert torch.equal(first.gazing_pos, second.gazing_pos)
    assert all(torch.equal(*pair) for pair in zip(snapshot(first.state), snapshot(second.state), strict=True))


def test_state_of_another_batch_is_refused(seven) -> None:
    model, _, video, _ = seven
    state = model.generate(video[:3], 0.5, return_state=True).state
    with pytest.raises(ValueError, match="3 rows, this call has 7"):
        model.generate(video, 0.5, state=state)


def test_repeated_positions_can_be_switched_off(seven) -> None:
    model, _, video, _ = seven
    counted = AutoGaze(AutoGazeConfig.from_dict(model.config.to_dict() | {"repeat_step_positions": False})).eval()
    counted.load_state_dict(model.state_dict())
    assert not torch.equal(counted.generate(video, 0.9).gazing_pos, model.generate(video, 0.9).gazing_pos)


def test_a_prediction_equal_to_the_requirement_stops(seven) -> None:
    model = copy.deepcopy(seven[0])
    torch.nn.init.zeros_(model.gazing_model.gaze_decoder.task_loss_prediction_head.weight)
    info = model.generate(seven[2], 0.9, 0.0)
    assert [len(ids) for row in range(7) for ids in kept(info, row)] == [1] * 28
