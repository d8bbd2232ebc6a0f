"""transformers' Trainer takes a wrapped model as it takes its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

import autogaze_mllm as am
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.tiny_models import logits, make

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 4}


def mean_loss(model: am.GazedModel, batch: dict[str, Any]) -> float:
    """As trainers reckon it: the sum over what is predicted, over its number. Nobody learns placeholders."""
    ids = batch["input_ids"]
    labels = batch["labels"].masked_fill(model.family.is_visual(ids), -100)
    with torch.no_grad():
        scores = model(ids, batch["media"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    total = nn.functional.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return float(total / (labels[:, 1:] != -100).sum())


class Collator:
    """As those of supervised fine-tuning: rows of text and media -> a padded batch with labels."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        questions = [f"<video>\n{row['question']}" for row in rows]
        inputs = self.model.prepare(questions, [[row["video"]] for row in rows], padding_side="right")
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return inputs


def train(model: Any, collator: Collator, clip: Path, out: Path, **options: Any) -> Trainer:
    rows = [{"video": clip, "question": "What?"}, {"video": clip, "question": "What moves in here?"}]
    arguments = TrainingArguments(
        str(out),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        logging_steps=1,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return trainer


def test_the_trainer_trains_with_and_without_checkpointing(clip, tmp_path):
    """The same losses either way, the first of them that of the model itself."""
    losses = []
    for number, checkpointing in enumerate((False, True)):
        _, wrapped = make("llava_onevision", frames=3)
        collator = Collator(wrapped)
        batch = collator([{"video": clip, "question": "What?"}, {"video": clip, "question": "What moves in here?"}])
        expected = mean_loss(wrapped.train(), batch)
        out = tmp_path / str(number)
        trainer = train(wrapped, collator, clip, out, activation_checkpointing=checkpointing, save_steps=1)
        assert wrapped.is_activation_checkpointing == checkpointing
        history = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        assert history[0] == pytest.approx(expected, abs=1e-3) and history[1] < history[0]
        assert trainer.evaluate()["eval_loss"] < history[1]
        losses.append(history)
        stored = load_file(out / "checkpoint-2" / "model.safetensors")
        _, other = make("llava_onevision", frames=3)
        other.load_state_dict(stored)
        with torch.no_grad():
            assert torch.equal(other(**batch).logits, wrapped.eval()(**batch).logits)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_lora_learns_in_the_first_layers_under_checkpointing(clip, tmp_path):
    """Where all that comes before is frozen, the embeddings have to be told that gradients are wanted."""
    _, wrapped = make("llava_onevision", frames=3)
    lora = get_peft_model(wrapped, LoraConfig(target_modules=r".*language_model.*q_proj", r=4))
    train(lora, Collator(wrapped), clip, tmp_path, gradient_checkpointing=True, save_strategy="no")
    first = [p for n, p in lora.named_parameters() if "layers.0" in n and "lora_B" in n]
    assert first and all(p.abs().sum() > 0 for p in first)


def test_weights_that_are_tied_are_kept_once(clip, tmp_path):
    """Embeddings and head of one tensor, which safetensors would refuse to write twice."""
    tied = []
    for seed in (0, 1):
        base, processor = tiny_model("llava_onevision", image_size=64, seed=seed)
        base.lm_head.weight = base.get_input_embeddings().weight
        tied.append(am.wrap(base, "pixel-diff", processor=processor, frames=3, cache=False))
    first, second = tied
    train(first, Collator(first), clip, tmp_path, save_steps=2)
    stored = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    second.load_state_dict(stored)
    assert torch.equal(logits(first.eval(), clip), logits(second, clip))
    base = second.base
    assert base.lm_head.weight is base.get_input_embeddings().weight
