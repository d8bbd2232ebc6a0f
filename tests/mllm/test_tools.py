"""A wrapped model is a model: peft, trainers, accelerate, autocast and torch.compile take it as they take its base."""

from __future__ import annotations

import copy
import pickle

import accelerate
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import GenerationConfig

import autogaze_mllm as am
from autogaze_mllm.mllm.families import FAMILIES as KNOWN
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.families.models import FAMILIES as FAMILY
from ..helpers.families.models import NAMES, build
from ..helpers.tiny_models import FAMILIES, QUESTION, logits, make, tiny_gaze

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 4}


def strengthen(model: nn.Module) -> None:
    """LoRA begins as a change of nothing, which anything would pass with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


# -- peft --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_peft_model_is_wrapped_with_its_lora(family, clip):
    base, processor = tiny_model(family, image_size=64)
    plain = logits(am.wrap(copy.deepcopy(base), "pixel-diff", processor=processor, frames=4, cache=False), clip)
    lora = get_peft_model(base, LoraConfig(**LORA))
    strengthen(lora)
    wrapped = am.wrap(lora, "pixel-diff", processor=processor, frames=4, cache=False)
    found = logits(wrapped, clip)
    assert not torch.allclose(found, plain, atol=1e-2)
    with lora.disable_adapter():
        assert torch.allclose(logits(wrapped, clip), plain, atol=1e-5)
    with pytest.raises(am.InputError, match="already wrapped"):
        am.wrap(lora, "all", processor=processor)
    with pytest.raises(am.InputError, match="already wrapped"):
        am.wrap(base, "all", processor=processor)
    assert wrapped.base is lora and wrapped.unwrap() is lora
    merged = am.wrap(lora.merge_and_unload(), "pixel-diff", processor=processor, frames=4, cache=False)
    assert torch.allclose(logits(merged, clip), found, atol=1e-4)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_lora_is_put_into_a_wrapped_model(task, clip, tmp_path):
    _, wrapped = make("llava_onevision", frames=4)
    plain = logits(wrapped, clip)
    lora = get_peft_model(wrapped, LoraConfig(task_type=task, **LORA))
    inputs = lora.prepare(QUESTION, videos=[clip])
    assert torch.allclose(lora(**inputs).logits, plain, atol=1e-5)
    lora(**inputs, labels=inputs["input_ids"]).loss.backward()
    learnt = [p.grad.abs().sum() for n, p in lora.named_parameters() if "lora_B" in n and "language_model" in n]
    assert learnt and all(learnt)
    strengthen(lora)
    found = logits(lora, clip)
    assert not torch.allclose(found, plain, atol=1e-2)
    answer = lora.ask(clip, "What moves?", max_new_tokens=4)
    ids = lora.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert wrapped.tokenizer.decode(ids[0], skip_special_tokens=True).strip() == answer
    lora.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make("llava_onevision", frames=4)[1], tmp_path)
    assert torch.allclose(logits(again, clip), found, atol=1e-5)
    assert torch.allclose(logits(again.merge_and_unload(), clip), found, atol=1e-4)


def test_wrappers_that_have_to_come_later_are_named():
    base, processor = tiny_model("llava", image_size=64)
    for outer in (nn.DataParallel(base), torch.compile(base)):
        with pytest.raises(am.InputError, match=f"inside of {type(outer).__name__}"):
            am.wrap(outer, "all", processor=processor)
    tuned = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(am.InputError, match="PROMPT_TUNING changes the prompt"):
        am.wrap(tuned, "all", processor=processor)
    _, wrapped = make("llava")
    for outer in (wrapped, get_peft_model(wrapped, LoraConfig(**LORA)), nn.DataParallel(wrapped)):
        with pytest.raises(am.InputError, match="already wrapped"):
            am.wrap(outer, "all", processor=processor)


# -- accelerate --------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator_state():
    yield
    accelerate.state.AcceleratorState._reset_state(True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_saves_and_hands_back(precision, clip, tmp_path, accelerator_state):
    _, wrapped = make("llava_onevision", frames=3)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    prepared, optimizer = accelerator.prepare(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.1))
    inputs = accelerate.utils.send_to_device(prepared.prepare(QUESTION, [clip]), accelerator.device)
    before = prepared(**inputs, labels=inputs["input_ids"]).loss
    accelerator.backward(before)
    optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    answer = prepared.ask(clip, "What moves?", max_new_tokens=3)
    optimizer.step()
    accelerator.load_state(str(tmp_path / "state"))
    assert prepared.ask(clip, "What moves?", max_new_tokens=3) == answer
    assert prepared(**inputs, labels=inputs["input_ids"]).loss < before
    assert accelerator.unwrap_model(prepared) is wrapped
    accelerator.unwrap_model(prepared).save_pretrained(
        tmp_path / "model", is_main_process=True, state_dict=accelerator.get_state_dict(prepared)
    )
    assert am.load(tmp_path / "model", cache=False).ask(clip, "What moves?", max_new_tokens=3) == answer


# Idefics3 itself moves embeddings to where its weights are, which is nowhere.
NOT_OFFLOADED = ("paligemma", "paligemma2", "idefics3")
OFFLOADED = [name for name in NAMES if FAMILY[name].model_type in KNOWN and name not in NOT_OFFLOADED]


@pytest.mark.parametrize("name", OFFLOADED)
def test_weights_that_are_kept_elsewhere_come_when_they_are_needed(name, clip, tmp_path):
    """Offloaded before and after wrapping, with the cache, and dense too."""
    options = {"gaze": "pixel-diff", "frames": 2}
    chat = {"max_new_tokens": 3}
    base, processor = build(name)
    wrapped = am.wrap(base, processor=processor, cache=False, **options)
    expected = logits(wrapped, clip)
    with wrapped.disabled():
        dense = wrapped.ask(clip, "What moves?", **chat)
    answer = wrapped.ask(clip, "What moves?", **chat)
    accelerate.cpu_offload(wrapped, torch.device("cpu"))
    assert all(part.is_meta for part in wrapped.parameters())
    assert torch.allclose(logits(wrapped, clip), expected, atol=1e-5)
    base, processor = build(name)
    accelerate.disk_offload(base, str(tmp_path / "weights"), torch.device("cpu"))
    wrapped = am.wrap(base, processor=processor, cache=tmp_path / "cache", **options)
    assert wrapped.device == torch.device("cpu")
    for _ in range(2):
        assert wrapped.ask(clip, "What moves?", **chat) == answer
    assert wrapped.stats["from_cache"] == 1
    with wrapped.disabled():
        assert wrapped.ask(clip, "What moves?", **chat) == dense


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_dispatched_to_different_devices(family, clip, tmp_path):
    base, processor = tiny_model(family, image_size=64)
    expected = logits(am.wrap(copy.deepcopy(base), "pixel-diff", processor=processor, frames=3, cache=False), clip)
    devices: dict[str, str] = {
        "model.vision_tower.embeddings": "disk",
        "model.vision_tower.encoder.layers.0": "cpu",
        "model.vision_tower.encoder.layers.1": "disk",
        "model.vision_tower.encoder.layers.2": "cpu",
        "model.vision_tower.post_layernorm": "disk",
        "model.multi_modal_projector": "cpu",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.layers.0": "disk",
        "model.language_model.layers.1": "cpu",
        "model.language_model.norm": "disk",
        "model.language_model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    if family == "llava_onevision":
        devices["model.image_newline"] = "disk"
    accelerate.dispatch_model(base, devices, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    wrapped = am.wrap(base, "pixel-diff", processor=processor, frames=3, cache=False)
    assert wrapped.hf_device_map == devices
    assert torch.allclose(logits(wrapped, clip), expected, atol=1e-5)


def test_a_gaze_model_that_was_offloaded_comes_back(clip):
    base, processor = tiny_model("llava_onevision", image_size=64)
    wrapped = am.wrap(base, tiny_gaze(), processor=processor, frames=3, cache=False)
    expected = logits(wrapped, clip)
    accelerate.cpu_offload(wrapped, torch.device("cpu"))
    assert torch.allclose(logits(wrapped, clip), expected, atol=1e-5)


def test_weights_that_were_never_loaded_are_refused():
    with torch.device("meta"):
        base, processor = tiny_model("llava", image_size=64)
    with pytest.raises(am.InputError, match="never loaded"):
        am.wrap(base, "all", processor=processor)


# -- autocast, compile, copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "internvl", "gemma3", "smolvlm", "video_llava"])
def test_autocast_takes_every_selector(family, clip):
    base, processor = build(family)
    for gaze in ("pixel-diff", "random", "all", "bundled"):
        wrapped = am.wrap(base, gaze, processor=processor, frames=2, cache=False)
        expected = logits(wrapped, clip)
        with torch.autocast("cpu", torch.bfloat16):
            found = logits(wrapped, clip).float()
            assert isinstance(wrapped.ask(clip, "What?", max_new_tokens=2), str)
        # Half a percent of a value is what bf16 keeps; the tiny models have large ones.
        assert (found - expected).abs().mean() < 0.1 * expected.abs().mean(), gaze
        wrapped.unwrap()


@pytest.mark.slow
def test_a_compiled_wrapper_gives_the_same(clip):
    _, wrapped = make("llava_onevision", frames=3)
    expected, answer = logits(wrapped, clip), wrapped.ask(clip, "What moves?", max_new_tokens=3)
    compiled = torch.compile(wrapped, backend="eager")
    assert torch.allclose(logits(compiled, clip), expected, atol=1e-5)
    assert compiled.ask(clip, "What moves?", max_new_tokens=3) == answer
    wrapped.base.model.language_model.compile(backend="eager")
    assert wrapped.ask(clip, "What moves?", max_new_tokens=3) == answer


def test_copies_are_models_of_their_own(clip):
    _, wrapped = make("llava_onevision", tiny_gaze(), frames=3)
    expected = logits(wrapped, clip)
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert other.family.base is other.base is not wrapped.base
        with wrapped.disabled():
            assert torch.equal(logits(other, clip), expected)
        with torch.no_grad():
            other.base.lm_head.weight.zero_()
        assert not logits(other, clip).any()
    assert torch.equal(logits(wrapped, clip), expected)


# -- what a transformers model answers ---------------------------------------------------------------------------

EXPECTED = (
    "activation_checkpointing_disable",
    "activation_checkpointing_enable",
    "add_model_tags",
    "base_model_prefix",
    "can_generate",
    "config",
    "device",
    "disable_input_require_grads",
    "dtype",
    "enable_input_require_grads",
    "floating_point_ops",
    "generation_config",
    "get_input_embeddings",
    "get_memory_footprint",
    "get_output_embeddings",
    "gradient_checkpointing_disable",
    "gradient_checkpointing_enable",
    "is_activation_checkpointing",
    "is_gradient_checkpointing",
    "main_input_name",
    "name_or_path",
    "num_parameters",
    "prepare_inputs_for_generation",
    "push_to_hub",
    "resize_token_embeddings",
    "save_pretrained",
    "set_input_embeddings",
    "supports_gradient_checkpointing",
    "tie_weights",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_tools_ask_of_a_model_is_there(family):
    base, wrapped = make(family)
    assert [name for name in EXPECTED if not hasattr(wrapped, name)] == []
    same = ("config", "generation_config", "main_input_name", "base_model_prefix", "dtype", "device", "name_or_path")
    assert all(
        getattr(wrapped, name) is getattr(base, name) or getattr(wrapped, name) == getattr(base, name) for name in same
    )
    assert wrapped.get_input_embeddings() is base.get_input_embeddings()
    assert wrapped.get_output_embeddings() is base.get_output_embeddings()
    assert wrapped.num_parameters() == base.num_parameters()
    assert (
        wrapped.num_parameters(exclude_embeddings=True)
        == base.num_parameters() - base.get_input_embeddings().weight.numel()
    )
    assert wrapped.can_generate() and not wrapped.is_gradient_checkpointing
    wrapped.gradient_checkpointing_enable()
    assert base.is_gradient_checkpointing and wrapped.is_gradient_checkpointing
    wrapped.gradient_checkpointing_disable()
    assert not base.is_gradient_checkpointing
    wrapped.generation_config.max_new_tokens = 3
    assert base.generation_config.max_new_tokens == 3
    assert not hasattr(wrapped, "hf_device_map") and not hasattr(wrapped, "no_such_thing")
    with pytest.raises(AttributeError, match="'GazedModel' object has no attribute 'no_such_thing'"):
        _ = wrapped.no_such_thing
    with pytest.raises(am.InputError, match="upload that folder"):
        wrapped.push_to_hub("somebody/something")


def test_a_gaze_model_counts_among_the_parameters():
    base, wrapped = make("llava", tiny_gaze())
    gaze = sum(part.numel() for part in wrapped.gaze.parameters())
    assert gaze and wrapped.num_parameters() == base.num_parameters() + gaze


def test_natively_loaded_models_answer_too(vila):
    wrapped = vila
    for name in ("main_input_name", "generation_config", "can_generate", "prepare_inputs_for_generation", "dtype"):
        assert hasattr(wrapped, name), name
    wrapped.activation_checkpointing_enable()
    assert wrapped.is_activation_checkpointing
    assert isinstance(wrapped.generation_config, GenerationConfig)


@pytest.fixture
def vila(tmp_path):
    from ..helpers.files.checkpoints import write_vila

    write_vila(tmp_path)
    return am.wrap(tmp_path, "pixel-diff", frames=2, cache=False)


def test_after_unwrap_every_question_gets_the_same_line(clip):
    _, wrapped = make("llava")
    wrapped.unwrap()
    for name in ("base", "family", "tower", "config", "device", "generation_config", "num_parameters"):
        if name != "num_parameters":
            assert not hasattr(wrapped, name)
    for use in (
        lambda: wrapped.base,
        lambda: wrapped.config,
        lambda: wrapped.generation_config,
        lambda: wrapped.num_parameters(exclude_embeddings=True),
        lambda: wrapped.ask(clip, "What?"),
        lambda: wrapped.generate(torch.ones(1, 3, dtype=torch.long)),
        lambda: wrapped(torch.ones(1, 3, dtype=torch.long)),
        wrapped.unwrap,
    ):
        with pytest.raises(am.InputError, match="this model was unwrapped"):
            use()
