"""NVILA-HD-Video from its published layout: weights, features and order against a plain forward; what is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

import autogaze_mllm as am
from autogaze_mllm.gaze.ratio import patches_per_frame
from autogaze_mllm.gaze.settings import preset
from autogaze_mllm.mllm.native import NvilaModel

from ...helpers.families.plain_vision import dense_tower, gazed_pictures, join, part, project
from ...helpers.files.checkpoints import VISION, drop_keys, write_json, write_nvila

KIND = "mlp_downsample_3x3_fix"
SMALL = {"frames": 6, "thumbnails": 3, "max_tiles": 4, "ratio": 0.5, "cache": False}
FULL = {"image_size": 448, "scales": "56+112+196+392"}  # the published tower's grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("nvila")
    write_nvila(path)
    return path


@pytest.fixture(scope="module")
def tensors(folder) -> dict[str, torch.Tensor]:
    return {key: tensor for shard in folder.glob("*.safetensors") for key, tensor in load_file(shard).items()}


@pytest.fixture(scope="module")
def model(folder):
    return am.wrap(folder, "pixel-diff", **SMALL)


def change(folder: Path, name: str = "config.json", **changes) -> None:
    stored = json.loads((folder / name).read_text())
    for key, value in changes.items():
        stored[key] = {**stored[key], **value} if isinstance(value, dict) else value
    write_json(folder / name, stored)


def test_every_weight_arrives_as_it_was_written(folder, tensors):
    base = NvilaModel.from_pretrained(folder)
    # transformers calls the tower's parameters by names with or without vision_model.
    arrived = {name.replace("vision_model.", ""): weight for name, weight in base.state_dict().items()}
    assert arrived.keys() == {key.replace("vision_model.", "") for key in tensors}
    assert all(torch.equal(arrived[key.replace("vision_model.", "")], tensor) for key, tensor in tensors.items())
    assert not base.training and base.device.type == "cpu" and base.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in (*base.parameters(), *base.buffers()))
    assert base.mm_projector.merge == 9 and base.mm_projector.layers[2].out_features == 40  # as the shapes have it


def test_features_equal_a_plain_forward_tile_by_tile(model, tensors, clip):
    """Tower at hidden_states[-2], frames in time order with all their tiles, thumbnails last, nine in gaze order."""
    inputs = model.prepare("<video>", [clip], chat=False)
    gazed = inputs["media"][0][0].content
    assert gazed.tiles == (2, 1) and gazed.thumbnails == 3 and len(gazed.clip_frames) == 5
    pictures = gazed_pictures(part(tensors, "vision_tower.vision_model."), VISION, [2, 4], gazed)
    assert len(pictures) == 9 and any(len(picture) % 9 for picture in pictures)
    joined = torch.cat([join(picture, 9) for picture in pictures])
    expected = project(part(tensors, "mm_projector."), KIND, joined)
    visual = inputs["input_ids"][0] == model.config.video_token_id
    assert int(visual.sum()) == len(expected) == sum(math.ceil(len(picture) / 9) for picture in pictures)
    found = model.embed(inputs["input_ids"], inputs["media"])[0][visual]
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_llm_equals_qwen2_with_the_same_weights(folder, model, tensors, clip):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    plain = Qwen2ForCausalLM(Qwen2Config.from_dict(dict(text))).eval()
    plain.load_state_dict(part(tensors, "llm."), strict=True)
    inputs = model.prepare("<video>\nwhat moves?", [clip])
    embedded = model.embed(inputs["input_ids"], inputs["media"])
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, plain(inputs_embeds=embedded).logits, atol=1e-5)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.family.video_token_id, -100)
        assert torch.allclose(
            model(**inputs, labels=labels).loss, plain(inputs_embeds=embedded, labels=labels).loss, atol=1e-5
        )


def test_dense_pictures_equal_a_plain_forward(model, tensors, clip):
    with model.disabled():
        inputs = model.prepare("<video> and <image>", [clip], [Image.new("RGB", (90, 40), "red")], chat=False)
        embedded = model.embed(inputs["input_ids"], inputs["media"])[0]
    for item, token in zip(inputs["media"][0], (model.config.video_token_id, model.config.image_token_id), strict=True):
        (pixels,) = item.content.values()
        states = dense_tower(part(tensors, "vision_tower.vision_model."), VISION, pixels)
        joined = torch.cat([join(frame, 9) for frame in states])
        expected = project(part(tensors, "mm_projector."), KIND, joined)
        found = embedded[inputs["input_ids"][0] == token]
        assert len(found) == item.tokens == 2 * len(pixels)  # 16 patches a picture
        assert torch.allclose(found, expected, atol=1e-5)


def test_placeholder_arithmetic_of_the_published_runs(model):
    count = model.family.gazed_count
    assert count([45 * 32] * 128 + [1038] * 64) == 128 * 160 + 64 * 116 == 27904
    # The preset's upper bound: every one of four 224-pixel quarters of a tile keeps as many of 265 as it may.
    settings = preset("nvila-hd")
    kept = (4 * patches_per_frame(settings.ratio, 265, 1, settings.chunk_frames)[0]).tolist()
    assert kept == [212] + [60] * 15
    chunks = settings.frames // settings.chunk_frames
    assert count([45 * tile for tile in kept] * chunks + [1038] * settings.thumbnails) == 51904
    assert count([0, 1, 9, 10]) == 0 + 1 + 1 + 2


def test_defaults_are_the_models_own(folder, model, tmp_path):
    assert am.wrap(folder, "pixel-diff").settings == preset("nvila-hd")
    assert (model.settings.predicted_loss, model.settings.frames) == (0.6, 6)
    assert model.tower.grid == am.PatchGrid.of("28+56", 14)
    write_nvila(tmp_path, vision={"attn_type": "causal", "frame_independent_encoding": True})
    tower = am.wrap(tmp_path, "all").tower
    assert (tower.attn_type, tower.frame_independent) == ("causal", True)
    tower = am.wrap(tmp_path, "all", attn_type="bidirectional", frame_independent=False, scales="56").tower
    assert (tower.attn_type, tower.frame_independent, tower.grid.size) == ("bidirectional", False, 16)


def test_prompt_is_the_published_one(folder, model, clip, tmp_path):
    def shown(wrapped) -> str:
        seen = []
        wrapped.generate = lambda input_ids, **rest: seen.append(input_ids[0]) or input_ids
        wrapped.ask(clip, "what moves?")
        del wrapped.generate
        text = wrapped.tokenizer.decode(seen[0])
        return text.replace("<vila/video>" * wrapped.stats["visual_tokens"], "@")

    assert shown(model) == "<|im_start|>user\n@\n\nwhat moves?<|im_end|>\n<|im_start|>assistant\n"
    write_nvila(tmp_path)
    change(tmp_path, "tokenizer_config.json", chat_template=None)  # then the family's own format
    system = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
    assert shown(am.wrap(tmp_path, "pixel-diff", **SMALL)).startswith(f"{system}<|im_start|>user\n@\n\nwhat")


def test_asking_disabling_unwrapping(folder, model, clip, capfd):
    reply = model.ask(clip, "what moves?", max_new_tokens=4)
    assert isinstance(reply, str) and model.stats["visual_tokens"] < model.stats["patches"]
    assert model.stats["patches_total"] == 20 * (6 * 2 + 3)
    with model.disabled():
        model.ask(clip, "what moves?", max_new_tokens=2)
        assert model.stats["visual_tokens"] == model.stats["dense_tokens"] == 12
    fresh = am.wrap(folder, "pixel-diff", **SMALL)
    base = fresh.unwrap()
    assert isinstance(base, NvilaModel)
    ids = torch.arange(65, 75)[None]
    assert torch.equal(base(input_ids=ids).logits, model(input_ids=ids).logits)
    assert base.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape[1] <= 13
    with pytest.raises(am.InputError, match="unwrapped"):
        fresh.ask(clip, "what?")
    assert "custom code" not in "".join(capfd.readouterr())  # config.json names some: it is not asked about


def test_a_loaded_model_is_wrapped_as_it_is(folder, model, clip):
    base = NvilaModel.from_pretrained(folder)
    direct = am.wrap(base, "pixel-diff", **SMALL)
    assert direct.base is base
    assert torch.equal(*(m(**m.prepare("<video>what?", [clip])).logits for m in (direct, model)))


def test_gradients_reach_every_part(model, clip):
    inputs = model.prepare("<video>\nwhat moves?", [clip])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    base = model.base
    for module in (base.vision_tower, base.mm_projector, base.llm):
        assert sum(p.grad.abs().sum() for p in module.parameters() if p.grad is not None) > 0
    base.zero_grad()


def test_saving_writes_the_same_layout(folder, model, tensors, clip, tmp_path):
    model.save_pretrained(tmp_path)
    base = tmp_path / "base"
    written = {key: tensor for shard in base.glob("*.safetensors") for key, tensor in load_file(shard).items()}
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in tensors.items())
    assert json.loads((base / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = am.load(tmp_path, cache=False)
    assert again.settings == model.settings and again.tower.grid == model.tower.grid
    assert torch.equal(*(m(**m.prepare("<video>what?", [clip])).logits for m in (again, model)))


@pytest.mark.parametrize("told", [True, None])
def test_a_tied_head_is_read_from_the_weights(tmp_path, told):
    tensors = write_nvila(tmp_path, tied=True)
    config = json.loads((tmp_path / "config.json").read_text())
    if told is None:
        del config["text_config"]["tie_word_embeddings"]
        write_json(tmp_path / "config.json", config)
    base = NvilaModel.from_pretrained(tmp_path)
    assert base.llm.lm_head.weight is base.llm.model.embed_tokens.weight
    base.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors.keys()
    change(tmp_path, text_config={"tie_word_embeddings": False})
    with pytest.raises(am.InputError, match=r"missing: llm\.lm_head\.weight$"):
        NvilaModel.from_pretrained(tmp_path)


def test_sizes_that_the_configuration_leaves_open_come_from_the_weights(tmp_path):
    tensors = write_nvila(tmp_path, head=True, middle=64)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
        del config["text_config"][name], config["vision_config"][name]
    for name in ("image_size", "patch_size", "model_type"):
        del config["vision_config"][name]
    for name in ("vocab_size", "model_type"):
        del config["text_config"][name]
    write_json(tmp_path / "config.json", config)
    base = NvilaModel.from_pretrained(tmp_path)
    assert sum(p.numel() for p in base.parameters()) == sum(tensor.numel() for tensor in tensors.values())
    assert base.config.vision_config.image_size == 70 and base.mm_projector.layers[4].normalized_shape == (64,)


def test_dtype_follows_the_weights_unless_told(tmp_path, clip):
    write_nvila(tmp_path, dtype=torch.bfloat16)
    wrapped = am.wrap(tmp_path, "pixel-diff", **SMALL)
    assert {p.dtype for p in wrapped.base.parameters()} == {torch.bfloat16}
    assert wrapped(**wrapped.prepare("<video>what?", [clip])).logits.dtype == torch.bfloat16
    assert NvilaModel.from_pretrained(tmp_path, dtype="float32").dtype == torch.float32
    with pytest.raises(am.InputError, match="dtype 'int7'"):
        NvilaModel.from_pretrained(tmp_path, dtype="int7")
    # Rotary frequencies are computed, not stored, and stay exact.
    inv_freq = dict(wrapped.base.named_buffers())["llm.model.rotary_emb.inv_freq"]
    assert inv_freq.dtype == torch.float32


def test_missing_and_left_over_keys_are_listed(tmp_path):
    write_nvila(tmp_path)
    tower = "vision_tower.vision_model.encoder.layers.2.mlp.fc2.weight"
    dropped = ["mm_projector.layers.5.bias", "llm.model.layers.1.mlp.up_proj.weight", tower]
    for shard in tmp_path.glob("*.safetensors"):
        drop_keys(shard, dropped)
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    drop_keys(first, [], {"llm.surplus.weight": torch.zeros(2), "vision_tower.surplus": torch.zeros(1)})
    with pytest.raises(am.InputError) as caught:
        am.wrap(tmp_path, "all")
    message = str(caught.value)
    assert message.count("\n") == 0
    missing, surplus = message.split("missing: ")[1].split("; left over: ")
    assert missing == ", ".join(sorted(dropped))
    assert surplus == "llm.surplus.weight, vision_tower.surplus"


def test_harmless_keys_are_let_pass(tmp_path):
    write_nvila(tmp_path, head=True)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    norm = [f"vision_tower.vision_model.post_layernorm.{leaf}" for leaf in ("weight", "bias")]
    drop_keys(first, norm, {"llm.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)})
    drop_keys(second, norm, {"vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 25)})
    base = NvilaModel.from_pretrained(tmp_path)
    tower = getattr(base.vision_tower, "vision_model", base.vision_tower)
    assert bool((tower.post_layernorm.weight == 1).all())


def test_a_wrong_shape_is_named_with_both(tmp_path):
    write_nvila(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        key = "llm.model.layers.0.self_attn.k_proj.bias"
        if key in load_file(shard):
            drop_keys(shard, [key], {key: torch.zeros(7)})
    with pytest.raises(am.InputError, match=r"another shape: llm\S+k_proj\.bias \(stored 7, expected 24\)"):
        am.wrap(tmp_path, "all")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": {"hidden_size": 64}}, "vision tower says hidden_size 64, its weights have 32"),
        ({"text_config": {"intermediate_size": 65}}, "LLM says intermediate_size 65, its weights have 64"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "clip_vision_model; gazing needs SigLIP"),
        ({"text_config": {"model_type": "mamba"}}, "LLM is a mamba; supported: llama, qwen2"),
        ({"text_config": None}, "no text_config"),
        ({"video_token_id": 9999}, "no token 9999"),
    ],
)
def test_configurations_that_cannot_be_right_are_refused(tmp_path, changes, message):
    write_nvila(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(am.InputError, match=message):
        am.wrap(tmp_path, "all")


def test_damaged_or_absent_weights_are_refused(tmp_path):
    write_nvila(tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(am.InputError, match=rf"{shard.name}: damaged"):
        am.wrap(tmp_path, "all")
    shard.unlink()
    with pytest.raises(am.InputError, match=f"no {shard.name}"):
        am.wrap(tmp_path, "all")
    for path in tmp_path.glob("model*"):
        path.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(am.InputError, match=r"neither model\.safetensors nor"):
        am.wrap(tmp_path, "all")


def test_a_contradicting_processor_grid_is_reported_with_both(tmp_path, caplog, clip):
    """Published: the processor's 1038 positions against the tower's 1060. Reported; the tower's grid is used."""
    write_nvila(tmp_path, vision=FULL, pixels={"target_scales": [56, 112, 224, 448], "target_patch_size": 16})
    with caplog.at_level(logging.WARNING, logger="autogaze_mllm"):
        wrapped = am.wrap(tmp_path, "pixel-diff", frames=2, thumbnails=0, max_tiles=1, cache=False)
    (record,) = [record for record in caplog.records if "grid mismatch" in record.message]
    assert "= 1060 positions" in record.message and "= 1038 positions" in record.message
    assert wrapped.tower.grid.size == 1060
    assert wrapped.family.dense_count(1) == 88  # 784 patches of the largest scale
    caplog.clear()
    change(tmp_path, "preprocessor_config.json", target_scales=[56, 112, 196, 392], target_patch_size=14)
    with caplog.at_level(logging.WARNING, logger="autogaze_mllm"):
        am.wrap(tmp_path, "pixel-diff")
    assert not caplog.records


def test_no_code_of_a_folder_is_run_or_asked_about(tmp_path, capfd):
    write_nvila(tmp_path)
    (tmp_path / "configuration_nvila.py").write_text("raise RuntimeError('was run')")
    am.wrap(tmp_path, "all")
    change(tmp_path, model_type="never_heard_of")
    with pytest.raises(am.InputError, match="model_type never_heard_of"):
        am.wrap(tmp_path, "all")
    assert "custom code" not in "".join(capfd.readouterr())


@pytest.mark.cuda
def test_on_cuda(folder, model, clip):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    wrapped = am.wrap(folder, "pixel-diff", device="cuda", **SMALL)
    assert {tensor.device.type for tensor in (*wrapped.base.parameters(), *wrapped.base.buffers())} == {"cuda"}
    gazed = model.gaze_video(clip)  # once: frames resized on a GPU differ by a grey level here and there
    logits = wrapped(**wrapped.prepare("<video>what?", [gazed.to("cuda")])).logits.cpu()
    assert torch.allclose(logits, model(**model.prepare("<video>what?", [gazed])).logits, atol=1e-3)
    with wrapped.disabled():
        assert isinstance(wrapped.ask(clip, "what?", max_new_tokens=2), str)
