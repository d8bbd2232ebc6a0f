"""Training the gaze model along: the policy gradient, what changes, what is saved, and that it learns where to look."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import PARTS, AdapterConfig, PartConfig, RolloutConfig
from autogaze_mllm.finetuning.data.dataset import ConversationDataset, collator
from autogaze_mllm.finetuning.data.media_store import MediaStore
from autogaze_mllm.finetuning.data.samples import load_samples
from autogaze_mllm.finetuning.parts import switch_on
from autogaze_mllm.finetuning.run import finetune
from autogaze_mllm.finetuning.trained_model import TrainedModel
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.gaze.pipeline import gaze_video
from autogaze_mllm.gaze.selection import build_info
from autogaze_mllm.video.writer import write_video

from ..helpers.files.finetune_files import config, mixed_data, save_base, turns, wrapped
from ..helpers.tiny_models import tiny_gaze

OFF = {part: PartConfig() for part in PARTS}
GAZE = {**OFF, "gaze": PartConfig("full", 1e-3)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return mixed_data(tmp_path_factory.mktemp("finetune") / "data")


def gazing(**more) -> am.GazedModel:
    return wrapped(gaze=tiny_gaze(), **{"loss": 0, "ratio": 0.2, **more})


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, now in module.state_dict().items() if not torch.equal(now, before[name])}


# -- the gradient ------------------------------------------------------------------------------------------------


def clips_of(path: Path, model: am.GazedModel) -> list[torch.Tensor]:
    """What the gaze model sees of a video: (1, T, 3, S, S) for each chunk."""
    clips: list[torch.Tensor] = []

    def listen(chunk):
        clips.append(model.gaze.processor.normalize(chunk.tile(0)[None].float() / 255))

    gaze_video(path, "all", model.settings, grid=model.tower.grid, listener=listen)
    return clips


def log_probability(model: am.GazedModel, gazed: am.GazedVideo, path: Path, temperature: float) -> torch.Tensor:
    """Of all choices in a gazed video, from its positions alone."""
    total, frame, row = torch.zeros(()), 0, 0
    for clip, frames in zip(clips_of(path, model), gazed.clip_frames.tolist(), strict=True):
        counts = gazed.frame_counts[frame : frame + frames].tolist()
        ids = gazed.positions[row : row + sum(counts)][None]
        info = build_info(ids, torch.ones_like(ids, dtype=torch.bool), counts, model.gaze.grid, pad_id=-1)
        values, _ = model.gaze.score(clip, info, match_generation=True, temperature=temperature)
        total, frame, row = total + values.sum(), frame + frames, row + sum(counts)
    return total


@pytest.mark.parametrize("with_llm", [False, True])
def test_the_gradient_is_that_of_the_policy_gradient_by_hand(with_llm, data):
    """GRPO on samples with two videos, one, and none: sum over rollouts of (loss - mean loss) * log-probability."""
    model = gazing(frames=6, chunk_frames=4)
    model.cache = VideoCache(data.parent / "gazed")
    plans = {**GAZE, "projector": PartConfig("full")} if with_llm else GAZE
    switch_on(model, plans, AdapterConfig())
    plan = RolloutConfig(3, 1.7)
    trained = TrainedModel(model, plan).train()
    samples = load_samples([data])[:7]
    store = MediaStore(model, model.cache, keep_videos=True)
    store.prepare(samples)
    dataset = ConversationDataset(samples, model, store, 4096)
    batch = collator(0, packing=False, samples=True)([dataset[number] for number in range(len(dataset))])

    torch.manual_seed(5)
    loss = trained(**batch)["loss"]
    loss.backward()
    found = {name: p.grad.clone() for name, p in trained.base_parameters() if p.requires_grad}
    assert any(name.startswith("gaze.") for name in found)
    assert any(not name.startswith("gaze.") for name in found) == with_llm

    torch.manual_seed(5)  # the same rollouts again
    with torch.no_grad():
        ways = trained.policy(torch.zeros(1), batch["media"])
    torch.manual_seed(5)
    shown = trained.policy(torch.zeros(1, requires_grad=True), batch["media"]).media
    assert ways.scores is None and len(ways.media[0]) == 1  # where nothing is learnt, nothing is drawn
    trained.zero_grad()
    expected_loss, policy = torch.zeros(()), torch.zeros(())
    count = int((batch["labels"][:, 1:] != -100).sum())
    for sample, media in zip(samples, shown, strict=True):
        losses, logs, entries = [], [], 0
        paths = [medium.path for medium in sample.media if medium.kind == "video"]
        for way in media:
            films = [item.content for item in way if isinstance(item.content, am.GazedVideo)]
            # The conversation anew, with these very videos.
            tokens = [item.tokens for item in way]
            encoded = _encoded(sample, tokens, model)
            output = model(torch.tensor([encoded.ids]), [way], labels=torch.tensor([encoded.labels]))
            losses.append(output.loss * sum(label != -100 for label in encoded.labels[1:]))
            if films:
                pairs = list(zip(films, paths, strict=True))
                logs.append(sum(log_probability(model, film, path, 1.7) for film, path in pairs))
                entries += sum(map(len, films))
        expected_loss = expected_loss + sum(losses) / len(losses) / count
        if logs:
            assert len(logs) == 3
            mean = sum(losses).detach() / 3
            weight = 1 / (3 * (entries / 3) * count)
            policy = policy + sum((a.detach() - mean) * b for a, b in zip(losses, logs, strict=True)) * weight
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-5)
    (expected_loss + policy).backward()
    strongest = max(float(gradient.abs().max()) for name, gradient in found.items() if name.startswith("gaze."))
    assert strongest > 1e-5
    for name, parameter in trained.base_parameters():
        if parameter.requires_grad:
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(found[name], expected, atol=1e-3 * strongest if "gaze." in name else 1e-5), name


def _encoded(sample, tokens, model):
    from autogaze_mllm.finetuning.data.conversation import encode_conversation

    return encode_conversation(sample, [[count] for count in tokens], model.preprocessing, model.family)


def loss_of(model: am.GazedModel, data: Path) -> float:
    """Of all samples in one batch, their videos gazed as they are for answers."""
    samples = load_samples([data])
    store = MediaStore(model, model.cache)
    store.prepare(samples)
    dataset = ConversationDataset(samples, model, store, 4096)
    batch = collator(0, packing=False)([dataset[number] for number in range(len(dataset))])
    with torch.no_grad():
        return TrainedModel(model).eval()(**batch)["loss"].item()


# -- what changes, and what is left ------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [GAZE, {**GAZE, "projector": PartConfig("full", 1e-3)}], ids=["alone", "projector"])
def test_exactly_the_parts_that_are_switched_on_change(parts, data, tmp_path):
    model = gazing()
    base, gaze = weights(model.family.base), weights(model.gaze)
    options = {"parts": parts, "rollouts": RolloutConfig(2), "max_steps": 2, "batch_size": 8}
    result = finetune(model, config(data, tmp_path / "out", eval_data=(str(data),), **options))
    assert np.isfinite(result["losses"]).all()
    on = {part for part in PARTS if parts[part].mode == "full"}
    assert {model.family.part_of(name) for name in changed(model.family.base, base)} == on
    moved = changed(model.gaze, gaze)
    assert moved and not any("task_loss_prediction_head" in name for name in moved)
    loaded = am.load(tmp_path / "out", cache=False)
    assert all(torch.equal(tensor, model.gaze.state_dict()[name]) for name, tensor in weights(loaded.gaze).items())
    # Evaluation was of the gaze model as it had become, without chance.
    loaded.cache = VideoCache(tmp_path / "gazed")
    assert result["eval_loss"] == pytest.approx(loss_of(loaded, data), abs=1e-5)
    assert (
        abs(loss_of(am.load(tmp_path / "out", gaze=tiny_gaze(), cache=tmp_path / "other"), data) - result["eval_loss"])
        > 1e-6
    )


def test_a_resumed_training_goes_on_as_if_nothing_had_been(data, tmp_path):
    base = save_base(tmp_path / "base model")

    def fresh():
        return am.wrap(base, tiny_gaze(), frames=4, ratio=0.2, cache=False)

    options = {"parts": GAZE, "rollouts": RolloutConfig(2), "save_steps": 2, "save_total_limit": 5}
    whole = finetune(fresh(), config(data, tmp_path / "out", **options), str(base))
    (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").unlink()
    last = am.load(tmp_path / "out", cache=False).gaze.state_dict()
    again = finetune(fresh(), config(data, tmp_path / "out", **options, resume="auto"), str(base))
    assert again["losses"] == whole["losses"]
    resumed = am.load(tmp_path / "out", cache=False).gaze.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in last.items())


# -- learning where to look --------------------------------------------------------------------------------------

COLOURS = {"r": (230, 20, 20), "g": (20, 200, 20), "b": (20, 20, 230), "w": (250, 250, 250)}


def coloured(folder: Path, cell: tuple[int, int] | None) -> Path:
    """A still picture of each colour: all of it, or one cell of 4 x 4 on a grey wall."""
    folder.mkdir()
    rows = []
    for name, colour in COLOURS.items():
        frame = np.full((64, 64, 3), 128, dtype=np.uint8)
        top, left = (0, 0) if cell is None else (16 * cell[0], 16 * cell[1])
        side = 64 if cell is None else 16
        frame[top : top + side, left : left + side] = colour
        write_video(folder / f"{name}.mp4", [frame, frame], fps=2)
        rows.append({"video": f"{name}.mp4", "conversations": turns("<video>\n?", name)})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


@pytest.mark.slow
def test_gaze_learns_to_look_where_the_answer_is(tmp_path):
    """The LLM names the colour of the one patch that it is shown; then the gaze model, and it alone, learns on pictures
    in which a single cell is coloured."""
    options = {"frames": 1, "ratio": 0.05, "scales": "32+64"}
    model = wrapped(gaze="random", **options)
    everywhere, somewhere = coloured(tmp_path / "all", None), coloured(tmp_path / "one", (2, 1))
    parts = {part: PartConfig("full", 3e-3) for part in PARTS}
    quick = {"gradient_checkpointing": False, "warmup": 0.1, "log_steps": 5}
    first = finetune(model, config(everywhere, tmp_path / "first", parts=parts, max_steps=60, **quick))
    assert first["losses"][-1] < 0.2

    model = am.load(tmp_path / "first", gaze=tiny_gaze(), cache=False, loss=0)
    parts = {**OFF, "gaze": PartConfig("full", 5e-3)}
    learning = config(somewhere, tmp_path / "second", parts=parts, max_steps=50, rollouts=RolloutConfig(4), **quick)
    result = finetune(model, learning)
    assert result["losses"][-1] < result["losses"][0] - 0.5
