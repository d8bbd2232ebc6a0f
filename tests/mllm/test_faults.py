"""Folders of models that were made to do harm: nothing of them is ever run, and each ends in a model or in one line."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer

import autogaze_mllm as am
from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.foreign_config import check_no_code
from autogaze_mllm.common.storage.weights import write_weights
from autogaze_mllm.mllm.loading import load_or_wrap
from autogaze_mllm.mllm.prompts import chat_template
from autogaze_mllm.training.tasks.videomae.features import FeatureLoss, PixelStatistics

from ..helpers.files.checkpoints import write_vila
from ..helpers.tiny_models import make, tiny_gaze

MAPS = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.C", "AutoTokenizer": [None, "evil.C"]}
MAPS |= {"AutoImageProcessor": "evil.C", "AutoProcessor": "evil.C"}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a gaze model of its own."""
    folder = tmp_path_factory.mktemp("stored") / "model"
    make("llava", tiny_gaze(), frames=2)[1].save_pretrained(folder)
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in whose every folder there is code that leaves a mark when it is run. Nobody is ever asked."""
    target = tmp_path / "model"
    shutil.copytree(stored, target)
    code = f"open({str(tmp_path / 'mark')!r}, 'w').close()\nclass C: pass\ndef generate(*_, **__): return 0\n"
    for place in (target, target / "base", target / "gaze", target / "base" / "custom_generate"):
        place.mkdir(exist_ok=True)
        for name in ("evil.py", "generate.py"):
            (place / name).write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    return target


def change(path: Path, **values: Any) -> None:
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**stored, **values}))


def line_of(action: Callable[[], Any]) -> str:
    """The one line that an action is refused with; "" where it works."""
    try:
        action()
    except am.InputError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def unmarked(folder: Path) -> None:
    assert not (folder.parent / "mark").exists()


def test_no_map_to_code_is_followed_in_any_file(folder: Path, clip: Path) -> None:
    whole = am.load(folder, cache=False).ask(clip, "What?", max_new_tokens=3)
    files = ["autogaze_mllm.json", "gaze/config.json", "gaze/preprocessor_config.json"]
    files += [
        f"base/{name}.json" for name in ("config", "tokenizer_config", "preprocessor_config", "generation_config")
    ]
    for name in (*files, "base/processor_config.json", "base/special_tokens_map.json"):
        change(folder / name, auto_map=MAPS, trust_remote_code=True, custom_generate="evil")
    model = am.load(folder, cache=False)
    assert model.ask(clip, "What?", max_new_tokens=3) == whole
    unmarked(folder)


def test_no_key_of_an_image_processor_takes_the_place_of_its_code(folder: Path, clip: Path) -> None:
    change(folder / "base/preprocessor_config.json", preprocess="evil", __class__="evil", resize=1, device="warp")
    kept = {"target_patch_size": 14, "return_tensors": "np", "_set_attributes": None}
    change(folder / "base/preprocessor_config.json", **kept)
    found = am.load(folder, cache=False).preprocessing.image_processor
    assert found.target_patch_size == 14 and callable(found.preprocess) and callable(found.resize)
    for key, value in (("size", {"height": "8"}), ("size", {"height": 10**9, "width": 9}), ("image_mean", ["a"])):
        change(folder / "base/preprocessor_config.json", **{"size": {"height": 64, "width": 64}, key: value})
        assert "preprocessor_config.json" in line_of(lambda: am.load(folder, cache=False))


def test_an_unwrapped_model_says_so_whatever_is_asked_of_it(clip: Path) -> None:
    base, model = make("llava", "random")
    assert model.base is base and model.unwrap() is base
    for action in (
        lambda: model.base,
        lambda: model.family,
        lambda: model.config,
        lambda: model.device,
        lambda: model.ask(clip, "What?"),
        lambda: model.unwrap(),
    ):
        assert "was unwrapped" in line_of(action)
    assert not hasattr(model, "base") and not hasattr(model, "nothing")


def test_a_model_type_of_its_own_is_refused(folder: Path) -> None:
    change(folder / "base/config.json", auto_map=MAPS, model_type="evil")
    change(folder / "autogaze_mllm.json", tower={"hub": {"trust_remote_code": True}, "scales": [[32, 32], [64, 64]]})
    for action in (lambda: am.load(folder), lambda: am.wrap(folder / "base", "all"), lambda: load_or_wrap(folder)):
        assert line_of(action)
    assert "'trust_remote_code'" in line_of(lambda: am.wrap(folder / "base", "all", hub={"trust_remote_code": True}))
    unmarked(folder)


@pytest.mark.parametrize(
    "more", [{"hub": {"trust_remote_code": True}}, {"compile": True}, {"cache": "/nowhere/at/all"}, {"device": "warp"}]
)
def test_keys_of_the_settings_never_become_arguments(folder: Path, more: dict[str, Any]) -> None:
    tower = json.loads((folder / "autogaze_mllm.json").read_text())["tower"]
    change(folder / "autogaze_mllm.json", tower={**tower, **more})
    model = am.load(folder, cache=False)
    assert model.cache is None and model.device.type == "cpu"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("tower", {"scales": "56"}, "'scales' must be a list"),
        ("tower", {"scales": [[32, 32]], "attn_type": "any", "frame_independent": False}, "'attn_type' must be one of"),
        ("tower", {"scales": [[32, 32]], "attn_type": "causal", "frame_independent": "no"}, "must be true or false"),
        ("tower", None, "'scales' is missing"),
        ("settings", [1], "'settings' must be an object"),
        ("settings", {"frames": "8"}, "frames must be a whole number"),
        ("settings", {"hub": 1}, "unknown setting 'hub'"),
        ("gaze", "all", "'gaze' must be an object"),
        ("gaze", {"name": ["all"]}, "no selector"),
        ("gaze", {}, "no selector"),
        ("base", 5, "'base' must be text"),
        ("tuned", [], "'tuned' must be an object"),
        ("format", {"a": 1}, "format"),
    ],
)
def test_settings_of_wrong_types_are_named_with_their_file(folder: Path, key: str, value: Any, told: str) -> None:
    change(folder / "autogaze_mllm.json", **{key: value})
    line = line_of(lambda: am.load(folder, cache=False))
    assert "autogaze_mllm.json" in line and told in line


@pytest.mark.parametrize(
    "text", [b"[" * 10**6, b'{"a": "\xff"}', b"[1]", b"{", b'{"format": 1' + b"0" * 5000 + b"}", b""]
)
@pytest.mark.parametrize(
    "name", ["autogaze_mllm", "base/config", "base/tokenizer_config", "base/preprocessor_config", "gaze/config"]
)
def test_json_that_is_none_is_one_line(folder: Path, name: str, text: bytes) -> None:
    (folder / f"{name}.json").write_bytes(text)
    assert line_of(lambda: am.load(folder, cache=False))


WRONG: list[tuple[str, tuple[str, ...], Any]] = [
    ("config", ("text_config", "num_hidden_layers"), 10**9),
    ("config", ("vision_config", "num_hidden_layers"), 10**9),
    ("config", ("text_config", "hidden_size"), 10**9),
    ("config", ("text_config", "vocab_size"), 10**30),
    ("config", ("vision_config", "image_size"), 10**9),
    ("config", ("text_config", "num_attention_heads"), "4"),
    ("config", ("text_config",), [1]),
    ("config", ("vision_config",), "siglip"),
    ("config", ("model_type",), {"a": 1}),
    ("config", ("image_token_index",), "x"),
    ("generation_config", ("eos_token_id",), {"a": 1}),
    ("generation_config", ("pad_token_id",), float("nan")),
    ("generation_config", ("temperature",), "hot"),
    ("generation_config", ("output_hidden_states",), 1.5),
    ("generation_config", ("return_dict_in_generate",), True),
    ("preprocessor_config", ("image_mean",), [0.5, 0.5]),
    ("preprocessor_config", ("image_std",), [0.5, 0.0, 0.5]),
    ("preprocessor_config", ("image_std",), 1),
    ("preprocessor_config", ("rescale_factor",), "1/255"),
    ("preprocessor_config", ("image_processor_type",), "AutoImageProcessor"),
    ("preprocessor_config", ("image_processor_type",), ["SiglipImageProcessor"]),
    ("tokenizer_config", ("model_max_length",), {"a": 1}),
    ("tokenizer_config", ("added_tokens_decoder",), 5),
]


@pytest.mark.parametrize(("name", "keys", "value"), WRONG)
def test_values_of_a_base_model_that_cannot_be_are_one_line(
    folder: Path, clip: Path, name: str, keys: tuple[str, ...], value: Any
) -> None:
    path = folder / "base" / f"{name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    node = stored
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(json.dumps(stored))
    memory, start = PeakMemory(), time.monotonic()
    line = line_of(lambda: am.load(folder, cache=False).ask(clip, "What?", max_new_tokens=1))
    assert str(folder) in line and len(line) < 1000
    assert memory.above < 500 << 20 and time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("mm_projector/config.json", "mm_projector_type", ["x"]),
        ("llm/config.json", "rope_theta", []),
        ("llm/config.json", "pad_token_id", 10**9),
        ("llm/config.json", "num_hidden_layers", 10**9),
        ("vision_tower/config.json", "num_attention_heads", 5),
        ("vision_tower/config.json", "image_size", {"a": 1}),
        ("llm/generation_config.json", "eos_token_id", "x"),
        ("vision_tower/preprocessor_config.json", "image_mean", [0.5]),
        ("config.json", "video_encoder", "{"),
    ],
)
def test_values_of_a_native_model_that_cannot_be_are_one_line(tmp_path: Path, file: str, key: str, value: Any) -> None:
    write_vila(tmp_path)
    change(tmp_path / file, **{key: value})
    line = line_of(lambda: am.wrap(tmp_path, "random", cache=False, frames=2, max_tiles=1, thumbnails=0))
    assert str(tmp_path) in line or "generation_config.json" in line


def test_pickles_in_the_place_of_weights_are_not_opened(folder: Path) -> None:
    trap = Trap(folder.parent / "mark")
    for place in (folder / "base", folder / "gaze"):
        whole = (place / "model.safetensors").read_bytes()
        (place / "model.safetensors").write_bytes(pickle.dumps(trap))
        assert line_of(lambda: am.load(folder, cache=False))
        (place / "model.safetensors").unlink()
        torch.save({"w": trap}, place / "pytorch_model.bin")
        assert line_of(lambda: am.load(folder, cache=False))
        (place / "model.safetensors").write_bytes(whole)
    unmarked(folder)


def test_nobody_is_asked_about_a_tokenizer_of_sentencepiece(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / name).unlink()
    (folder / "base/tokenizer.model").write_bytes(b"no sentencepiece model")
    for kind in ("LlamaTokenizer", "LlamaTokenizerFast", "EvilTokenizer"):
        (folder / "base/tokenizer_config.json").write_text(json.dumps({"auto_map": MAPS, "tokenizer_class": kind}))
        assert line_of(lambda: am.load(folder, cache=False))
    unmarked(folder)


def test_kernels_are_not_fetched_because_a_file_says_so(folder: Path, tmp_path: Path) -> None:
    for key in (
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
    ):
        for value in ("some-org/kernel", {"": "sdpa", "vision_config": "some-org/kernel@main"}):
            with pytest.raises(am.InputError, match=f"'{key}' names code to be fetched"):
                check_no_code({"text_config": [{key: value}]}, "config.json")
    check_no_code({"attn_implementation": "sdpa", "a/b": "c/d"}, "config.json")
    config = json.loads((folder / "base/config.json").read_text())
    config["vision_config"]["attn_implementation"] = "some-org/kernel"
    change(folder / "base/config.json", **config)
    assert "names code" in line_of(lambda: am.load(folder, cache=False))
    for name, told in (("config", {"attn_implementation": "some-org/kernel"}), ("preprocessor_config", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    assert "names code" in line_of(lambda: FeatureLoss("siglip2", tmp_path, PixelStatistics()))


def test_an_adapter_names_no_module_to_import(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft imports what `megatron_core` names, from wherever Python looks."""
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    adapter = folder / "adapter"
    LoraConfig(r=2, target_modules=".*q_proj").save_pretrained(adapter)
    change(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil", auto_mapping=MAPS)
    model = am.load(folder, cache=False)
    tensors = {}
    for name, parameter in model.base.named_parameters():
        if name.endswith("q_proj.weight") and "vision" not in name:
            stem = "base_model.model." + name.removesuffix("weight")
            tensors |= {f"{stem}lora_A.weight": torch.ones(2, parameter.shape[1])}
            tensors |= {f"{stem}lora_B.weight": torch.ones(parameter.shape[0], 2)}
    write_weights(adapter / "adapter_model.safetensors", tensors)
    change(folder / "autogaze_mllm.json", tuned={"parts": [], "adapter": True})
    tuned = am.load(folder, cache=False)
    assert any(bool((value == 1).all()) for name, value in tuned.base.named_parameters() if ".lora_B" in name)
    for key, value in (("r", 10**9), ("r", "2"), ("use_rslora", 1), ("lora_alpha", None), ("rank_pattern", {"q": 99})):
        change(adapter / "adapter_config.json", r=2, lora_alpha=8, rank_pattern={}, use_rslora=False)
        change(adapter / "adapter_config.json", **{key: value})
        assert "adapter_config.json" in line_of(lambda: am.load(folder, cache=False))
    unmarked(folder)


TEMPLATES = {
    "division": "{{ 1 / 0 }}",
    "range": "{% for n in range(10**9) %}{% endfor %}",
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "long text": "{{ 'a' * 10000000000 }}",
    "width": "{{ 'a'.center(10000000000) }}",
    "attribute": "{{ messages[7].content[0] }}",
    "no such filter": "{{ messages | nothing }}",
    "the way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_fail_or_have_no_end_are_one_line(folder: Path, clip: Path, name: str, monkeypatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = TEMPLATES[name]
    tokenizer.save_pretrained(folder / "base")
    start = time.monotonic()
    model = am.load(folder, cache=False)
    assert "chat template" in line_of(lambda: model.ask(clip, "What?", max_new_tokens=2))
    assert time.monotonic() - start < 15
    assert sys.gettrace() is None or "template" not in repr(sys.gettrace())
