"""Training in one process: what is learnt, what stays, gaze once, packing, resuming, saving, merging."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaOnevisionForConditionalGeneration

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.finetuning.config import PRESETS, AdapterConfig, PartConfig
from autogaze_mllm.finetuning.data.dataset import ConversationDataset, LengthSampler, collator, pack
from autogaze_mllm.finetuning.data.media_store import MediaStore
from autogaze_mllm.finetuning.data.samples import load_samples
from autogaze_mllm.finetuning.run import finetune
from autogaze_mllm.finetuning.trained_model import TrainedModel
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.mllm.native import NvilaModel

from ..helpers.files.checkpoints import write_nvila
from ..helpers.files.finetune_files import ALL, config, mixed_data, save_base, wrapped
from ..helpers.tiny_models import tiny_gaze

OFF = {part: PartConfig() for part in ALL}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return mixed_data(tmp_path_factory.mktemp("finetune") / "data")


@pytest.fixture(scope="module")
def prepared(data):
    """A model, and the mixed samples with their media."""
    model = wrapped()
    model.cache = VideoCache(data.parent / "gazed")
    samples = load_samples([data])
    store = MediaStore(model, model.cache)
    store.prepare(samples)
    return model, samples, store


def weights(model: am.GazedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.family.base.named_parameters()}


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
@pytest.mark.parametrize("part", list(ALL))
def test_exactly_the_part_that_is_switched_on_changes(part, family, data, tmp_path):
    model = wrapped(family, gaze=tiny_gaze(), loss=0)
    before, gaze_before = weights(model), {n: p.clone() for n, p in model.gaze.state_dict().items()}
    finetune(model, config(data, tmp_path, parts={**OFF, part: PartConfig("full", 1e-3)}, max_steps=3))
    changed = {name for name, now in weights(model).items() if not torch.equal(now, before[name])}
    assert changed
    assert {model.family.part_of(name) for name in changed} == {part}
    for name, value in model.gaze.state_dict().items():
        assert torch.equal(value, gaze_before[name]), f"gaze model: {name}"
    assert {path.parent.name for path in tmp_path.glob("*/model.safetensors")} == {"base", "gaze", part}


def test_every_part_learns_at_its_own_rate(data, tmp_path):
    """One update of Adam moves every weight by its learning rate, whatever the gradient."""
    rates = {"tower": 1e-4, "projector": 1e-3, "llm": 1e-2}
    model = wrapped()
    before = weights(model)
    plans = {part: PartConfig("full", rate) for part, rate in rates.items()}
    finetune(model, config(data, tmp_path, parts=plans, max_steps=1, warmup=0.0, clip=0.0))
    moved: dict[str, float] = {}
    for name, now in weights(model).items():
        part = model.family.part_of(name)
        moved[part] = max(moved.get(part, 0.0), float((now - before[name]).abs().max()))
    for part, rate in rates.items():
        assert moved[part] == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("where", ["llm", "tower"])
def test_lora_leaves_the_weights_and_saves_the_additions(where, data, tmp_path):
    base = save_base(tmp_path / "base model")
    model = am.wrap(base, "pixel-diff", frames=4, ratio=0.5, cache=False)
    before = weights(model)
    plans = {**OFF, "projector": PartConfig("full", 1e-3), where: PartConfig("lora", 1e-2)}
    output = tmp_path / "out"
    finetune(model, config(data, output, parts=plans, lora=AdapterConfig(rank=4, alpha=8), max_steps=3), str(base))
    for name, now in weights(model).items():
        plain = name.replace(".base_layer", "")
        if ".lora_" in name:
            assert model.family.part_of(name) == where
            assert "lora_B" not in name or "head" in name or bool(now.any()) or ".layers.2" in name
        elif model.family.part_of(name) != "projector":
            assert torch.equal(now, before[plain])
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert files == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "projector/model.safetensors",
        "autogaze_mllm.json",
        "finetune.json",
        "run.json",
        ".run.lock",
    }
    # peft reads the adapter by itself.
    plain = LlavaOnevisionForConditionalGeneration.from_pretrained(base)
    with_peft = PeftModel.from_pretrained(plain, output / "adapter")
    own = am.load(output, cache=False)
    theirs = {name.removeprefix("base_model.model."): part for name, part in with_peft.named_parameters()}
    for name, parameter in own.family.base.named_parameters():
        if own.family.part_of(name) != "projector":
            assert torch.equal(parameter, theirs[name]), name


@pytest.mark.parametrize("preset", ["align", "sft", "lora"])
def test_what_was_trained_is_what_is_loaded_and_merged(preset, data, tmp_path, clip):
    base = save_base(tmp_path / "base model")
    model = am.wrap(base, tiny_gaze(), frames=4, ratio=0.5, cache=False)
    quick = {part: dataclasses.replace(plan, lr=1e-2) for part, plan in PRESETS[preset].items()}
    output = tmp_path / "out"
    finetune(model, config(data, output, parts=quick, max_steps=3), str(base))
    assert not any(path.suffix in (".bin", ".pt", ".pth", ".pkl") for path in output.rglob("*"))
    inputs = model.prepare("<video>\nwhat?", [clip])
    expected = model(**inputs).logits
    loaded = am.load(output, cache=False)
    assert loaded.settings == model.settings and loaded.gaze.config.to_dict() == model.gaze.config.to_dict()
    assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-6)
    untrained = am.wrap(base, tiny_gaze(), cache=False)
    assert not torch.allclose(untrained(**inputs).logits, expected, atol=1e-3)
    assert main(["merge", str(output), str(tmp_path / "merged")]) == 0
    merged = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert {name for name, _ in merged.named_parameters()} == {n for n, _ in untrained.family.base.named_parameters()}
    again = am.wrap(merged, tiny_gaze(), processor=model.preprocessing, cache=False, frames=4, ratio=0.5)
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
    assert torch.allclose(am.load(tmp_path / "merged", cache=False)(**inputs).logits, expected, atol=1e-5)
    assert main(["merge", str(output), str(tmp_path / "merged")]) == 2  # not into a folder that holds something


def test_a_natively_loaded_model_trains_loads_and_merges(data, tmp_path, clip):
    write_nvila(tmp_path / "nvila")
    model = am.wrap(tmp_path / "nvila", "pixel-diff", frames=4, thumbnails=2, max_tiles=2, ratio=0.5, cache=False)
    plans = {"tower": PartConfig("lora", 1e-2), "projector": PartConfig("full", 1e-2), "llm": PartConfig("lora", 1e-2)}
    result = finetune(model, config(data, tmp_path / "out", parts=plans, max_steps=6), str(tmp_path / "nvila"))
    assert result["losses"][-1] < result["losses"][0]
    inputs = model.prepare("<video>\nwhat?", [clip])
    expected = model(**inputs).logits
    assert torch.allclose(am.load(tmp_path / "out", cache=False)(**inputs).logits, expected, atol=1e-5)
    assert main(["merge", str(tmp_path / "out"), str(tmp_path / "merged")]) == 0
    merged = NvilaModel.from_pretrained(tmp_path / "merged")
    again = am.wrap(merged, "pixel-diff", processor=model.preprocessing, cache=False)
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-4)


def test_a_base_model_that_moved_is_asked_for(data, tmp_path):
    base = save_base(tmp_path / "here")
    model = am.wrap(base, "pixel-diff", frames=4, ratio=0.5, cache=False)
    finetune(model, config(data, tmp_path / "out", parts=PRESETS["align"], max_steps=1), str(base))
    base.rename(tmp_path / "there")
    with pytest.raises(am.InputError, match=r"no longer at .*here: give its place with base="):
        am.load(tmp_path / "out")
    am.load(tmp_path / "out", base=tmp_path / "there")


def test_a_base_without_a_place_moves_with_the_result(data, tmp_path):
    model = wrapped()
    finetune(model, config(data, tmp_path / "out", parts=PRESETS["lora"], max_steps=2, save_steps=1))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    am.load(tmp_path / "elsewhere")
    am.load(tmp_path / "elsewhere" / "checkpoint-1")


# -- gaze first, once --------------------------------------------------------------------------------------------


def test_videos_are_gazed_once_for_all_trainings(data, tmp_path, monkeypatch):
    cache = tmp_path / "gazed"
    first = finetune(wrapped(), config(data, tmp_path / "a", cache=str(cache), max_steps=6))
    assert (first["videos"], first["gazed"]) == (3, 3)
    # From here on no video is there to be decoded.
    movies = tmp_path / "movies"
    shutil.copytree(data.parent, movies)
    second = finetune(wrapped(), config(movies / data.name, tmp_path / "b", cache=str(cache), max_steps=2))
    assert second["gazed"] == 0  # by content, wherever the files lie
    entry = next(cache.glob("*.gazed.safetensors"))
    entry.write_bytes(b"damaged")
    third = finetune(wrapped(), config(data, tmp_path / "c", cache=str(cache), max_steps=2))
    assert third["losses"] == first["losses"][:2]


def test_tokens_are_counted_as_prepare_counts_them(prepared):
    model, samples, store = prepared
    for sample in samples:
        for tokens, media in zip(store.tokens(sample), store.media(sample), strict=True):
            assert tokens == media.tokens
            embedded = model.embed(
                torch.full((1, tokens), model.family.video_token_id), [[media]]
            )  # refused if the count were wrong
            assert embedded.shape[1] == tokens


def test_unusable_media_are_named(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    rows = [{"video": "bad.mp4", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    with pytest.raises(am.InputError, match=r"media cannot be used: .*bad\.mp4"):
        finetune(wrapped(), config(tmp_path / "data.json", tmp_path / "out"))


# -- batches -----------------------------------------------------------------------------------------------------


def loss_and_gradients(model, batch):
    trained = TrainedModel(model)
    trained.zero_grad()
    loss = trained(**batch)["loss"]
    loss.backward()
    return loss.item(), {name: part.grad.clone() for name, part in trained.base_parameters() if part.grad is not None}


def test_the_trained_model_is_the_wrapped_model(prepared):
    """Loss and gradients against the wrapped model's own forward, on all kinds of samples in one batch."""
    model, samples, store = prepared
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    dataset = ConversationDataset(samples, model, store, 4096)
    batch = collator(0, packing=False)([dataset[number] for number in range(len(dataset))])
    loss, gradients = loss_and_gradients(model, batch)
    model.zero_grad()
    expected = model(**batch).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in model.family.base.named_parameters():
        if parameter.grad is None:
            assert not gradients[name].any(), name  # layers after the one whose output is taken
        else:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-5), name


def test_packed_samples_have_the_loss_and_gradients_of_separate_ones(prepared):
    model, samples, store = prepared
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    plain = ConversationDataset(samples, model, store, 4096)
    packed = ConversationDataset(samples, model, store, 1 << 15, packing=True)
    assert len(plain) == 8 and len(packed) == 1 and sum(plain.lengths) == packed.lengths[0]
    separate = loss_and_gradients(model, collator(0, packing=False)([plain[number] for number in range(8)]))
    batch = collator(0, packing=True)([packed[0]])
    together = loss_and_gradients(model, batch)
    assert together[0] == pytest.approx(separate[0], abs=1e-5)
    for name, gradient in separate[1].items():
        assert torch.allclose(together[1][name], gradient, atol=1e-5), name
    # If the samples saw each other, the loss would be another.
    batch["position_ids"] = torch.arange(packed.lengths[0])[None]
    assert abs(loss_and_gradients(model, batch)[0] - separate[0]) > 1e-3


def test_packs_are_full_and_hold_every_sample_once():
    lengths = torch.randint(1, 400, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    packs = pack(lengths, 1000)
    assert sorted(number for group in packs for number in group) == list(range(300))
    sizes = [sum(lengths[number] for number in group) for group in packs]
    assert max(sizes) <= 1000
    assert len(packs) <= sum(lengths) / 1000 * 1.05 + 1


def test_training_with_packing_gives_what_training_without_gives(data, tmp_path):
    """All eight samples are one batch, and one pack."""
    plain = finetune(wrapped(), config(data, tmp_path / "a", batch_size=8, max_steps=3))
    packed = finetune(wrapped(), config(data, tmp_path / "b", batch_size=1, packing=True, max_steps=3))
    assert packed["losses"] == pytest.approx(plain["losses"], abs=1e-4)


def test_samples_of_like_length_come_together_and_every_epoch_has_all_in_another_order():
    lengths = torch.randint(1, 1000, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthSampler(lengths, batch=8, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.epoch = epoch
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(1003))
    assert orders[0] == orders[2] != orders[1]
    chosen = [[lengths[number] for number in orders[0][start : start + 8]] for start in range(0, 1000, 8)]
    spread = sum(max(batch) - min(batch) for batch in chosen) / len(chosen)
    assert spread < 100  # of 1000; a random batch spreads over 780
    assert list(LengthSampler(lengths, 8, 3, group=False)) != orders[0]


def test_accumulated_steps_are_one_large_batch(data, tmp_path):
    whole = finetune(wrapped(), config(data, tmp_path / "a", batch_size=8, max_steps=3))
    parts = finetune(wrapped(), config(data, tmp_path / "b", batch_size=2, accumulate=4, max_steps=3))
    assert parts["losses"] == pytest.approx(whole["losses"], abs=1e-4)


def test_gradient_checkpointing_changes_nothing_but_memory(data, tmp_path):
    with_it = finetune(wrapped(), config(data, tmp_path / "a", max_steps=3))
    without = finetune(wrapped(), config(data, tmp_path / "b", max_steps=3, gradient_checkpointing=False))
    assert with_it["losses"] == pytest.approx(without["losses"], abs=1e-5)


def test_bf16_trains_like_fp32(data, tmp_path):
    exact = finetune(wrapped(), config(data, tmp_path / "a", max_steps=4))
    model = wrapped()
    rough = finetune(model, config(data, tmp_path / "b", max_steps=4, precision="bf16", parts=PRESETS["align"]))
    assert {p.dtype for n, p in model.family.base.named_parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for n, p in model.family.base.named_parameters() if not p.requires_grad} == {torch.bfloat16}
    assert rough["losses"][0] == pytest.approx(exact["losses"][0], abs=0.05)


def test_a_too_long_sample_is_named_before_training(data, tmp_path):
    with pytest.raises(am.InputError, match=r"mixed\.jsonl, row 5: \d+ tokens, but at most 300 fit"):
        finetune(wrapped(), config(data, tmp_path / "out", max_length=300))
    assert finetune(wrapped(), config(data, tmp_path / "out", max_length=400, too_long="truncate"))["steps"] == 4


# -- along the way -----------------------------------------------------------------------------------------------


def test_a_resumed_training_goes_on_as_if_nothing_had_been(data, tmp_path):
    """Three epochs of two updates, stopped in the second; LoRA's dropout needs the random states, too."""
    options = {
        "parts": {**ALL, "llm": PartConfig("lora", 1e-2)},
        "max_steps": 0,
        "epochs": 3,
        "save_steps": 1,
        "save_total_limit": 3,
        "lora": AdapterConfig(rank=4, dropout=0.3),
    }
    base = save_base(tmp_path / "base model")

    def fresh():
        return am.wrap(base, "pixel-diff", frames=4, ratio=0.5, cache=False)

    whole = finetune(fresh(), config(data, tmp_path / "a", **options), str(base))
    kept = sorted(path.name for path in (tmp_path / "a").glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    options["save_total_limit"] = 10
    finetune(fresh(), config(data, tmp_path / "b", **options), str(base))
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "b" / f"checkpoint-{step}")
    (tmp_path / "b" / "checkpoint-9").mkdir()  # killed while it was written
    resumed = finetune(fresh(), config(data, tmp_path / "b", **options, resume="auto"), str(base))
    assert resumed["losses"] == whole["losses"]
    for path in [*(tmp_path / "a").glob("adapter/*.safetensors"), *(tmp_path / "a").glob("projector/*.safetensors")]:
        other = load_file(tmp_path / "b" / path.relative_to(tmp_path / "a"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in load_file(path).items())


def test_a_training_is_not_overwritten_by_mistake(data, tmp_path):
    finetune(wrapped(), config(data, tmp_path / "out", max_steps=1, save_steps=1))
    with pytest.raises(am.InputError, match="holds checkpoint-1 of another training: add --resume"):
        finetune(wrapped(), config(data, tmp_path / "out", max_steps=1))
    with pytest.raises(am.InputError, match="not a checkpoint"):
        finetune(wrapped(), config(data, tmp_path / "out", resume=str(tmp_path)))


def test_evaluation_along_the_way_and_reports(data, tmp_path):
    options = {"eval_data": (str(data),), "eval_steps": 2, "report": "tensorboard", "max_steps": 4}
    result = finetune(wrapped(), config(data, tmp_path / "out", **options))
    assert len(result["eval_losses"]) == 2
    assert result["eval_losses"][1] < result["eval_losses"][0] < result["losses"][0]
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))


def test_workers_read_what_the_main_process_would(data, tmp_path):
    alone = finetune(wrapped(), config(data, tmp_path / "a", max_steps=3))
    helped = finetune(wrapped(), config(data, tmp_path / "b", max_steps=3, workers=2))
    assert helped["losses"] == alone["losses"]
