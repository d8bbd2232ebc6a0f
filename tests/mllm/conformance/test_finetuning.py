"""A fine-tuning of every family from end to end, on samples of all kinds: what is learnt is found again."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import AdapterConfig, PartConfig, RolloutConfig
from autogaze_mllm.finetuning.data.conversation import IGNORED
from autogaze_mllm.finetuning.data.dataset import ConversationDataset, collator, padding_id
from autogaze_mllm.finetuning.data.media_store import MediaStore
from autogaze_mllm.finetuning.data.samples import load_samples
from autogaze_mllm.finetuning.run import finetune
from autogaze_mllm.finetuning.trained_model import TrainedModel

from ...helpers.families.conformance import ALL, QUESTION, copy_of, each, frames_of, holds, prepared, wrapped, written
from ...helpers.files.finetune_files import config, mixed_data
from ...helpers.tiny_models import tiny_gaze

# The trainer of early transformers asks accelerate for names of DeepSpeed, whether it is there or not.
needs_trainer = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.20") and importlib.util.find_spec("deepspeed") is None,
    reason="the trainer of this transformers does not run without deepspeed",
)

QUICK = ["internvl"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples with a video, with two, with images, with a video and an image, and of text alone."""
    return mixed_data(tmp_path_factory.mktemp("finetune") / "data")


@needs_trainer
@holds("finetune")
@each(ALL, quick=QUICK)
def test_a_fine_tuning_is_found_again(name: str, data: Path, tmp_path: Path) -> None:
    """LoRA in tower and LLM, the projector whole. The loss is that of every token that an assistant says."""
    written(name, tmp_path / "base")
    model = am.wrap(tmp_path / "base", "random", frames=4, ratio=0.3, cache=False)
    parts = {"tower": PartConfig("lora", 1e-3), "llm": PartConfig("lora", 1e-3), "projector": PartConfig("full", 1e-3)}
    chosen = config(data, tmp_path / "tuned", parts=parts, lora=AdapterConfig(rank=2), batch_size=8, max_steps=1)
    report = finetune(model, chosen)
    assert math.isfinite(report["loss"])
    loaded = am.load(tmp_path / "tuned", cache=False)
    frames = frames_of(name, count=2)
    logits = []
    for one in (model, loaded):
        gazed = one.gaze_video(am.Video(frames, fps=2))
        with torch.no_grad():
            logits.append(one(**prepared(name, one, QUESTION, [gazed])).logits)
    assert torch.allclose(*logits, atol=1e-4), float((logits[0] - logits[1]).abs().max())


ANSWERS = {0: "a red box", 1: "four", 2: "yellow", 3: "the second|yes", 5: "a", 6: "green", 7: "it is"}


@holds("finetune")
@each(ALL)
def test_what_is_learnt_is_what_an_assistant_says(name: str, data: Path, tmp_path: Path) -> None:
    """With what ends an answer, and nothing else: no text around pictures, no placeholder."""
    _, model = wrapped(name, gaze="random", frames=4, ratio=0.3, cache=tmp_path)
    samples = load_samples([data])
    store = MediaStore(model, model.cache)
    store.prepare(samples)
    dataset = ConversationDataset(samples, model, store, max_length=1 << 16)
    for number, expected in ANSWERS.items():
        (item,) = dataset[number]
        labels = torch.tensor(item.labels)
        learnt = labels != IGNORED
        assert torch.equal(labels[learnt], torch.tensor(item.ids)[learnt])
        assert not model.family.is_visual(labels[learnt]).any()
        said = model.tokenizer.decode(labels[learnt], skip_special_tokens=True).split()
        assert said == expected.replace("|", " ").split() or "".join(said) == expected.replace("|", "").replace(" ", "")
        assert sum(media.tokens for media in item.media) == int(model.family.is_visual(torch.tensor(item.ids)).sum())


@needs_trainer
@holds("finetune")
@each(ALL, quick=[])
def test_gaze_is_trained_through_the_llm(name: str, data: Path, tmp_path: Path) -> None:
    """Where the gaze model looks is rewarded by how well the answer is then known."""
    written(name, tmp_path / "base")
    model = am.wrap(tmp_path / "base", tiny_gaze(), frames=4, ratio=0.3, loss=0, cache=False)
    before = {key: weight.clone() for key, weight in model.gaze.state_dict().items()}
    parts = {"tower": PartConfig(), "llm": PartConfig(), "projector": PartConfig("full", 1e-3)}
    parts["gaze"] = PartConfig("full", 1e-3)
    report = finetune(model, config(data, tmp_path / "tuned", parts=parts, batch_size=4, max_steps=2))
    assert math.isfinite(report["loss"])
    assert any(not torch.equal(weight, before[key]) for key, weight in model.gaze.state_dict().items())


def test_text_around_a_video_is_joined_where_gaze_is_trained_as_anywhere(data: Path, tmp_path: Path) -> None:
    """A tokenizer with a token for three line breaks makes one of those that end a turn's head and begin a frame."""
    base, preprocessing = copy_of("gemma3")
    preprocessing.tokenizer.add_tokens(["\n\n\n"])
    base.resize_token_embeddings(len(preprocessing.tokenizer))
    model = am.wrap(base, tiny_gaze(), processor=preprocessing, frames=4, ratio=0.3, loss=0, cache=tmp_path)
    store = MediaStore(model, model.cache, keep_videos=True)
    samples = load_samples([data])[:1]
    store.prepare(samples)
    dataset = ConversationDataset(samples, model, store, max_length=1 << 16)
    batch = collator(padding_id(model), packing=False, samples=True)([dataset[0]])
    module, read = TrainedModel(model, RolloutConfig(2, 1.0)), []
    module.embedder.register_forward_pre_hook(lambda _, args: read.append(args[1]))
    module(**batch)
    (rows,) = read
    joined = model.tokenizer.convert_tokens_to_ids("\n\n\n")
    for row in rows:
        text = model.tokenizer.decode(row[row != padding_id(model)])
        assert "user\n\n\n<start_of_image>" in text
        assert "<end_of_image>\n\n\nwhat is it?" in text
        assert int((row == joined).sum()) >= 2
