"""What is learnt from a gazed video is what the base learns, wherever the base's gradients go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import AdapterConfig, FinetuneConfig, PartConfig
from autogaze_mllm.finetuning.data.conversation import IGNORED
from autogaze_mllm.finetuning.parts import switch_on
from autogaze_mllm.finetuning.run import _checkpoint_layers, prepare
from autogaze_mllm.finetuning.trained_model import TrainedModel
from autogaze_mllm.mllm.trained_parts import load_parts, save_parts

from ...helpers.families.conformance import (
    ALL,
    EQUAL,
    LOOSE,
    QUESTION,
    SEEN,
    assert_close,
    copy_of,
    distance,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    pixels_of,
    prepared,
    third,
    wrapped,
)
from ...helpers.families.reference import continued, dense_inputs

QUICK = ["llava_clip", "paligemma", "qwen3_vl", "qwen3_5", "gemma4"]


@pytest.fixture
def answered(name: str) -> Iterator[tuple[Any, am.GazedModel, dict[str, Any], dict[str, Any]]]:
    """Base and model; inputs of a gazed video of which everything is kept, with an answer that is learnt; and those of
    the base. No gradient is left behind."""
    base, model = wrapped(name)
    frames = frames_of(name)
    answer = torch.tensor([model.tokenizer("a red car", add_special_tokens=False)["input_ids"]])
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    inputs = with_answer(prepared(name, model, QUESTION, [keep_all(model, frames)]), answer)
    dense = continued(name, reference, answer) | {"labels": inputs["labels"]}
    yield base, model, inputs, dense
    for parameter in base.parameters():
        parameter.grad = None
        parameter.requires_grad_(True)


def with_answer(inputs: dict[str, Any], answer: torch.Tensor) -> dict[str, Any]:
    """The answer (1, n) behind a prompt, to be learnt."""
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    labels = ids.clone()
    labels[:, :length] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "media": inputs["media"], "labels": labels}


def gradients(base: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every parameter of the base that the loss reaches."""
    for parameter in base.parameters():
        parameter.grad = None
    loss.backward()
    return {name: weight.grad.clone() for name, weight in base.named_parameters() if weight.grad is not None}


def assert_same_gradients(name: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """What the base's loss does not reach may have a gradient of zeros."""
    assert not expected.keys() - found.keys()
    assert not any(bool(found[parameter].any()) for parameter in found.keys() - expected.keys())
    for parameter, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        allowed = 10 * LOOSE.get(name, 3e-5) * scale + 1e-5
        assert distance(found[parameter], gradient) <= allowed, parameter


@holds("loss")
@each(EQUAL, quick=QUICK)
def test_loss_and_gradients_are_the_base(name: str, answered: Any) -> None:
    """By forward with labels, and by the module that fine-tuning trains."""
    base, model, inputs, dense = answered
    plain = base(**dense)
    expected, wanted = float(plain.loss.detach()), gradients(base, plain.loss)
    parts = {model.family.part_of(parameter) for parameter in wanted}
    assert parts == {"tower", "projector", "llm"}
    found = model(**inputs).loss
    assert abs(float(found.detach()) - expected) < 10 * LOOSE.get(name, 3e-5)
    assert_same_gradients(name, gradients(base, found), wanted)
    module = TrainedModel(model)
    assert sorted(module.names.values()) == sorted(parameter for parameter, _ in base.named_parameters())
    trained = module(**inputs)["loss"]
    assert abs(float(trained.detach()) - expected) < 10 * LOOSE.get(name, 3e-5)
    assert_same_gradients(name, gradients(base, trained), wanted)


@holds("loss")
@pytest.mark.slow
@each(EQUAL)
def test_checkpointed_layers_give_the_same_gradients(name: str) -> None:
    """As fine-tuning switches checkpointing on, in a base of its own."""
    base, preprocessing = copy_of(name)
    scales = list(wrapped(name)[1].tower.grid.scales)
    model = am.wrap(base, "all", processor=preprocessing, scales=scales, frame_independent=True, cache=False)
    answer = torch.tensor([model.tokenizer("a red car", add_special_tokens=False)["input_ids"]])
    inputs = with_answer(prepared(name, model, QUESTION, [keep(model, frames_of(name, count=4), third(name))]), answer)
    module = TrainedModel(model).train()
    expected = gradients(base, module(**inputs)["loss"])
    _checkpoint_layers(model, reentrant=False)
    layers = [layer for layer in base.modules() if getattr(layer, "gradient_checkpointing", False)]
    assert layers
    assert_same_gradients(name, gradients(base, module(**inputs)["loss"]), expected)


@holds("causal")
@each(EQUAL, quick=["paligemma", "paligemma2", "gemma3"])
def test_an_answer_is_read_from_left_to_right(name: str, answered: Any) -> None:
    _, model, inputs, _ = answered
    changed = {key: inputs[key].clone() for key in ("input_ids", "labels")}
    for ids in changed.values():
        ids[0, -2] = inputs["input_ids"][0, -1] + 1
    with torch.no_grad():
        before, after = model(**inputs).logits, model(**inputs | changed).logits
    assert_close(name, after[:, :-2], before[:, :-2])
    assert distance(after[:, -1], before[:, -1]) > SEEN


@holds("LoRA")
@each(ALL, quick=["internvl", "qwen2_5_vl"])
def test_lora_trains_and_is_saved(name: str, tmp_path: Path) -> None:
    """In tower and LLM, with the projector whole. What was saved makes another copy of the base answer alike."""
    model = tuned(name)
    plans = {"tower": PartConfig("lora", 1e-3), "llm": PartConfig("lora", 1e-3), "projector": PartConfig("full", 1e-3)}
    lora = switch_on(model, plans, AdapterConfig(rank=2, dropout=0.0))
    answer = torch.tensor([model.tokenizer("a red car", add_special_tokens=False)["input_ids"]])
    asked = prepared(name, model, QUESTION, [keep(model, frames_of(name, count=4), third(name))])
    module = TrainedModel(model)
    parameters = {key: weight for key, weight in module.base_parameters() if weight.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
    with torch.no_grad():
        before = model(**asked).logits
    for _ in range(2):  # LoRA's second matrix begins with zeros, so that the first learns from the second step on
        loss = module(**with_answer(asked, answer))["loss"]
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
    for part in ("tower", "llm"):
        taught = [w for key, w in parameters.items() if ".lora_A" in key and model.family.part_of(key) == part]
        assert taught, part
        assert any(float(weight.grad.abs().max()) > 0 for weight in taught), part
    with torch.no_grad():
        after = model(**asked).logits
    assert distance(after, before) > 1e-4
    tensors = {key: weight.detach() for key, weight in parameters.items()}
    stored = save_parts(tmp_path, model.family, tensors, lora)
    other = tuned(name)
    load_parts(tmp_path, other.family, stored)
    with torch.no_grad():
        assert_close(name, other(**asked).logits, after)


def tuned(name: str) -> am.GazedModel:
    """A model of its own: LoRA changes the base."""
    base, preprocessing = copy_of(name)
    scales = wrapped(name)[1].tower.grid.scales
    return am.wrap(base, "all", processor=preprocessing, scales=list(scales), frame_independent=True, cache=False)


@holds("packing")
@each(ALL)
def test_packing_is_refused_where_the_llm_is_told_more(name: str, tmp_path: Path) -> None:
    """Before any file is read. Where it is taken, two samples in one row lose what they lose apart."""
    _, model = wrapped(name)
    told = name.startswith(("qwen", "gemma", "paligemma"))
    assert model.family.packing is not told
    if told:
        missing = str(tmp_path / "missing.jsonl")
        parts = {"tower": PartConfig(), "projector": PartConfig("full", 1e-3), "llm": PartConfig()}
        config = FinetuneConfig(data=(missing,), output=str(tmp_path), parts=parts, packing=True, cpu=True)
        with pytest.raises(am.InputError, match=r"cannot be packed into one row.*leave packing out"):
            prepare(model, config)
        return
    answer = torch.tensor([model.tokenizer("a red car", add_special_tokens=False)["input_ids"]])
    videos = [keep(model, frames_of(name, count=4, seed=seed), third(name, seed=seed)) for seed in (1, 2)]
    rows = [with_answer(prepared(name, model, QUESTION, [video]), answer) for video in videos]
    module = TrainedModel(model)
    with torch.no_grad():
        apart = [float(module(**row)["loss"]) for row in rows]
        packed = {key: torch.cat([row[key] for row in rows], dim=1) for key in ("input_ids", "labels")}
        positions = torch.cat([torch.arange(row["input_ids"].shape[1]) for row in rows])[None]
        media = [[medium for row in rows for medium in row["media"][0]]]
        together = float(module(**packed, media=media, position_ids=positions)["loss"])
    assert abs(together - sum(apart) / 2) < 1e-4
