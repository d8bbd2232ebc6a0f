"""wrap(): what it promises about the base model, and that gaze really stands in front of it."""

from __future__ import annotations

import copy
import gc
import json

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig, Qwen2Config

import autogaze_mllm as am
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.tiny_models import FAMILIES, make, tiny_gaze


def snapshot(model: torch.nn.Module) -> dict:
    """Everything that a wrapper could leave behind: classes, attributes, hooks, methods."""
    return {
        name: (type(module), sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_wrapping_leaves_no_trace_on_the_base(family, clip):
    base, processor = tiny_model(family, image_size=64)
    before, methods = snapshot(base), {name: id(value) for name, value in vars(type(base)).items()}
    weights = copy.deepcopy(base.state_dict())
    wrapped = am.wrap(base, "pixel-diff", processor=processor, frames=8)
    wrapped.ask(clip, "what moves?", max_new_tokens=2)
    assert snapshot(base) == before
    returned = wrapped.unwrap()
    assert returned is base
    assert snapshot(base) == before
    assert {name: id(value) for name, value in vars(type(base)).items()} == methods
    assert all(torch.equal(base.state_dict()[name], value) for name, value in weights.items())
    with pytest.raises(am.InputError, match="unwrapped"):
        wrapped.ask(clip, "what moves?")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_differ_from_the_base_and_equal_it_when_disabled(family, clip):
    base, wrapped = make(family)
    with wrapped.disabled():
        dense = wrapped.prepare("<video>\nwhat moves?", [clip])
        inside = wrapped(**dense).logits
    # The base itself, given what the dense path gives it.
    item = dense["media"][0][0].content
    name = "pixel_values_videos" if family == "llava_onevision" else "pixel_values"
    plain = {"input_ids": dense["input_ids"], "attention_mask": dense["attention_mask"], name: item[name]}
    expected = base(**plain).logits
    with wrapped.disabled():
        assert torch.equal(wrapped(**plain).logits, expected)
    assert torch.allclose(inside, expected, atol=1e-6)
    gazed = wrapped.prepare("<video>\nwhat moves?", [clip])
    logits = wrapped(**gazed).logits
    assert gazed["input_ids"].shape[1] != dense["input_ids"].shape[1]
    assert not torch.allclose(logits[:, -1], expected[:, -1], atol=1e-4)
    assert torch.equal(wrapped.unwrap()(**plain).logits, expected)


def test_two_models_in_one_process_do_not_touch_each_other(clip):
    first, processor = tiny_model("llava", image_size=64)
    second, _ = tiny_model("llava", image_size=64, seed=1)
    ids = torch.arange(10, 20)[None]
    before, classes = second(ids).logits, snapshot(second)
    wrapped = am.wrap(first, "pixel-diff", processor=processor, frames=4)
    wrapped.ask(clip, "what moves?", max_new_tokens=2)
    assert torch.equal(second(ids).logits, before)
    assert snapshot(second) == classes


def test_wrapping_twice_is_refused_until_unwrapped():
    base, processor = tiny_model("llava", image_size=64)
    wrapped = am.wrap(base, "all", processor=processor)
    with pytest.raises(am.InputError, match=r"already wrapped.*unwrap\(\)"):
        am.wrap(wrapped, "all", processor=processor)
    with pytest.raises(am.InputError, match=r"already wrapped.*unwrap\(\)"):
        am.wrap(base, "all", processor=processor)
    wrapped.unwrap()
    again = am.wrap(base, "all", processor=processor)
    del again, wrapped
    gc.collect()
    am.wrap(base, "all", processor=processor).unwrap()  # a wrapper that is gone holds nothing


def test_unsupported_models_are_refused_with_the_list(tmp_path):
    with pytest.raises(
        am.InputError, match=r"Linear: not a supported family.*supported: LLaVA \(llava\), LLaVA-OneVision"
    ):
        am.wrap(torch.nn.Linear(2, 2), "all")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(am.InputError, match=r"model_type bert.*supported: LLaVA"):
        am.wrap(tmp_path, "all")
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(am.InputError, match=r"model_type never_heard_of.*supported: LLaVA"):
        am.wrap(tmp_path, "all")
    with pytest.raises(am.InputError, match=r"no config\.json"):
        am.wrap(tmp_path / "..", "all")


def test_a_tower_that_cannot_be_gazed_is_refused_by_name():
    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    base = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=4))
    _, processor = tiny_model("llava")
    with pytest.raises(am.InputError, match=r"pixtral tower.*siglip_vision_model"):
        am.wrap(base, "all", processor=processor)


def test_the_tower_is_compiled_when_asked_for():
    assert make("llava_onevision", "all", compile=True)[1].tower.compiled
    assert not make("llava_onevision", "all")[1].tower.compiled


@pytest.mark.parametrize("family", FAMILIES)
def test_all_patches_at_one_scale_give_the_base_towers_features(family, clip):
    """With every patch kept and frames apart, the gazed tower is the dense one."""
    base, wrapped = make(family, "all", scales="64", frame_independent=True, attn_type="bidirectional")
    gazed = wrapped.gaze_video(clip)
    with wrapped.disabled():
        item = wrapped.prepare("<video>", [clip], chat=False)["media"][0][0].content
    pixels = item["pixel_values"] if family == "llava" else item["pixel_values_videos"][0]
    expected = base.model.vision_tower(pixels, output_hidden_states=True)
    layer = base.config.vision_feature_layer
    assert torch.allclose(wrapped.tower.encode(gazed, layer), expected.hidden_states[layer].flatten(0, 1), atol=1e-5)
    if family == "llava":  # which spends a token on every patch, so the whole model agrees too
        dense = base(**_dense_inputs(wrapped, clip)).logits
        assert torch.allclose(wrapped(**wrapped.prepare("<video>what?", [clip])).logits, dense, atol=1e-4)


def _dense_inputs(wrapped, clip):
    with wrapped.disabled():
        inputs = wrapped.prepare("<video>what?", [clip])
    content = inputs.pop("media")[0][0].content
    return {**inputs, **content}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_projector_llm_and_tower(family, clip):
    base, wrapped = make(family)
    inputs = wrapped.prepare("<video>\nwhat moves?", [clip], padding_side="right")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == wrapped.family.video_token_id, -100)
    output = wrapped(**inputs, labels=labels)
    output.loss.backward()
    for part in (
        base.model.multi_modal_projector,
        base.model.language_model,
        base.model.vision_tower.encoder.layers[0],
    ):
        assert sum(parameter.grad.abs().sum() for parameter in part.parameters() if parameter.grad is not None) > 0
    step = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    step.step()
    assert wrapped(**inputs, labels=labels).loss < output.loss


def test_no_parameter_is_listed_twice():
    base, wrapped = make("llava", tiny_gaze())
    names = [name for name, _ in wrapped.named_parameters()]
    assert {name for name in names if name.startswith("base.")} == {
        f"base.{name}" for name, _ in base.named_parameters()
    }
    assert all(name.startswith(("base.", "gaze.")) for name in wrapped.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gaze", ["autogaze", "pixel-diff", "random", "all"])
def test_every_selector_answers(family, gaze, clip):
    _, wrapped = make(family, tiny_gaze() if gaze == "autogaze" else gaze, ratio=0.3, frames=6)
    reply = wrapped.ask(clip, "what moves?", max_new_tokens=5)
    assert isinstance(reply, str)
    stats = wrapped.stats
    assert stats["frames"] == 6
    assert stats["patches_total"] == 6 * wrapped.tower.grid.size
    assert (stats["patches"] == stats["patches_total"]) == (gaze == "all")
    assert stats["visual_tokens"] == stats["patches"] + (family == "llava_onevision")
    assert {"decode", "resize", "gaze", "tower", "projector", "llm"} <= stats["seconds"].keys()
    assert 1 <= stats["new_tokens"] <= 5


def test_default_scales_repeat_the_gaze_models_cells():
    assert make("llava", tiny_gaze())[1].tower.grid == am.PatchGrid.of("32+64", 16)
    base, processor = tiny_model("llava", image_size=384, patch=14)
    assert am.wrap(base, "pixel-diff", processor=processor).tower.grid == am.PatchGrid.of("56+112+196+392", 14)


def test_bfloat16_base_is_followed(clip):
    base, processor = tiny_model("llava", image_size=64)
    wrapped = am.wrap(base.to(torch.bfloat16), tiny_gaze(), processor=processor, frames=4)
    assert wrapped.gaze.dtype == torch.bfloat16
    assert wrapped.gaze_video(clip).patches.dtype == torch.bfloat16
    assert wrapped(**wrapped.prepare("<video>what?", [clip])).logits.dtype == torch.bfloat16


def test_settings_are_checked_where_they_are_made():
    for bad, message in [
        ({"ratio": 0.0}, r"\(0, 1\]"),
        ({"ratio": 1.5}, r"\(0, 1\]"),
        ({"frames": 0}, "at least 1"),
        ({"loss": -1.0}, "at least 0"),
        ({"rato": 0.5}, "unknown setting 'rato'"),
    ]:
        base, processor = tiny_model("llava", image_size=64)
        with pytest.raises(am.InputError, match=message):
            am.wrap(base, "all", processor=processor, **bad)


@pytest.mark.parametrize("gaze", ["autogaze", "pixel-diff", "random"])
def test_saved_model_comes_back_the_same(gaze, clip, tmp_path):
    selector = {"autogaze": tiny_gaze, "random": lambda: am.RandomSelector(7), "pixel-diff": am.PixelDiffSelector}[
        gaze
    ]()
    _, wrapped = make("llava_onevision", selector, ratio=0.4, attn_type="bidirectional")
    wrapped.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").rglob("*.bin")) and not list((tmp_path / "model").rglob("*.pt"))
    again = am.load(tmp_path / "model")
    assert again.settings == wrapped.settings and again.tower.grid == wrapped.tower.grid
    assert again.tower.attn_type == "bidirectional"
    one, two = (m(**m.prepare("<video> what?", [clip])).logits for m in (wrapped, again))
    assert torch.equal(one, two)
    assert am.load(tmp_path / "model", gaze="all", frames=3).settings.frames == 3


def test_a_selector_of_ones_own_has_to_be_given_again(tmp_path, clip):
    class Mine(am.AllSelector):
        name = "mine"

    _, wrapped = make("llava", Mine())
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(am.InputError, match=r"mine.*gaze="):
        am.load(tmp_path)
    assert am.load(tmp_path, gaze=Mine()).ask(clip, "what?", max_new_tokens=1) is not None


def test_an_incomplete_save_is_not_loaded(tmp_path):
    _, wrapped = make("llava")
    wrapped.save_pretrained(tmp_path)
    (tmp_path / "autogaze_mllm.json").unlink()
    with pytest.raises(am.InputError, match=r"no autogaze_mllm\.json"):
        am.load(tmp_path)
    with pytest.raises(am.InputError, match="no such folder"):
        am.load(tmp_path / "nowhere")


def test_a_base_folder_is_wrapped_by_its_path(tmp_path, clip):
    base, processor = tiny_model("llava_onevision", image_size=64)
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    wrapped = am.wrap(str(tmp_path), "pixel-diff", frames=4)
    direct = am.wrap(base, "pixel-diff", processor=processor, frames=4)
    assert torch.equal(*(m(**m.prepare("<video> what?", [clip])).logits for m in (wrapped, direct)))


def test_a_name_that_is_nowhere_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(am.InputError, match=r"^no-such-org/no-such-model") as refused:
        am.wrap("no-such-org/no-such-model")
    assert "\n" not in str(refused.value)


def test_dense_input_cannot_slip_past_gaze():
    _, wrapped = make("llava")
    with pytest.raises(am.InputError, match="bypass gaze"):
        wrapped(input_ids=torch.ones(1, 4, dtype=torch.long), pixel_values=torch.zeros(1, 3, 64, 64))
    assert wrapped(input_ids=torch.arange(8, 12)[None]).logits.shape[:2] == (1, 4)  # text alone is the base's business


def test_images_keep_the_base_models_own_path(clip):
    """An image in a wrapped model's prompt gives what the base gives it, bit for bit."""
    image = Image.effect_noise((90, 50), 80).convert("RGB")
    for family in FAMILIES:
        base, wrapped = make(family)
        inputs = wrapped.prepare("<image>what?", images=[image])
        content = dict(inputs["media"][0][0].content)
        content.pop("alone", None)
        expected = base(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **content).logits
        assert torch.allclose(wrapped(**inputs).logits, expected, atol=1e-6)


def test_image_processor_is_found_in_both_layouts(tmp_path):
    """Older repositories keep it in preprocessor_config.json, newer ones inside processor_config.json."""
    base, processor = tiny_model("llava_onevision", image_size=64)
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    stored["image_processor_type"] += "Fast"
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": stored}))
    found = am.wrap(tmp_path, "all").preprocessing.image_processor
    assert type(found) is type(processor.image_processor) and dict(found.size) == dict(processor.image_processor.size)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"image_processor_type": "Mystery"}}')
    with pytest.raises(am.InputError, match="'Mystery'"):
        am.wrap(tmp_path, "all")
