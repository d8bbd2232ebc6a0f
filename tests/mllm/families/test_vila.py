"""VILA-style folders: every projector with both LLMs against a plain forward, tokenizers, prompts, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import autogaze_mllm as am
from autogaze_mllm.mllm.native import VilaModel
from autogaze_mllm.mllm.native.llama_tokenizer import read_llama_tokenizer

from ...helpers.families.plain_vision import dense_tower, gazed_pictures, join, part, project, windows
from ...helpers.files.checkpoints import VISION, drop_keys, qwen_tokenizer, write_json, write_vila

KINDS = ["linear", "mlp2x_gelu", "mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]
WINDOW = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
SMALL = {"frames": 6, "ratio": 0.5, "scales": "28+56", "cache": False}
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


@pytest.fixture(
    scope="module", params=[(kind, language) for kind in KINDS for language in ("llama", "qwen2")], ids="-".join
)
def written(request, tmp_path_factory):
    """A folder, its tensors, the projector's kind, the LLM's, and the wrapped model."""
    kind, language = request.param
    folder = tmp_path_factory.mktemp("vila")
    tensors = write_vila(folder, kind=kind, language=language)
    return folder, tensors, kind, language, am.wrap(folder, "pixel-diff", **SMALL)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """One with a Llama, whose tokenizer is a sentencepiece model."""
    folder = tmp_path_factory.mktemp("vila-llama")
    write_vila(folder)
    return folder, am.wrap(folder, "pixel-diff", **SMALL)


def change(path: Path, **changes) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def visual(model, inputs, token: int) -> torch.Tensor:
    """What stands at the placeholders of the only prompt."""
    return model.embed(inputs["input_ids"], inputs["media"])[0][inputs["input_ids"][0] == token]


def test_every_weight_arrives_as_it_was_written(written):
    _, tensors, _, _, model = written
    arrived = {name.replace("vision_model.", ""): weight for name, weight in model.base.state_dict().items()}
    named = {key.replace("/", ".").replace("vision_model.", ""): tensor for key, tensor in tensors.items()}
    assert arrived.keys() == named.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in named.items())


def test_gazed_features_equal_a_plain_forward(written, clip):
    """A projector of k x k windows gets k * k tokens in gaze order, picture by picture, and nothing between."""
    _, tensors, kind, _, model = written
    inputs = model.prepare("<video>", [clip], chat=False)
    gazed = inputs["media"][0][0].content
    pictures = gazed_pictures(part(tensors, "vision_tower/vision_model."), VISION, [2, 4], gazed)
    size = WINDOW.get(kind, 1) ** 2
    expected = project(part(tensors, "mm_projector/"), kind, torch.cat([join(picture, size) for picture in pictures]))
    found = visual(model, inputs, model.family.video_token_id)
    assert len(found) == len(expected) == sum(math.ceil(len(picture) / size) for picture in pictures)
    assert torch.allclose(found, expected, atol=1e-5)


def test_dense_features_equal_a_plain_forward(written, clip):
    """The projector's own windows over a grid of 5 x 5, filled with zeros; a newline after every frame."""
    _, tensors, kind, _, model = written
    family = model.family
    with model.disabled():
        inputs = model.prepare("<video> <image>", [clip], [Image.new("RGB", (90, 40), "red")], chat=False)
        found = {number: visual(model, inputs, number) for number in (family.video_token_id, family.image_token_id)}
    newline = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    after = tensors["llm/model.embed_tokens.weight"][newline]
    k = WINDOW.get(kind, 1)
    for item, got in zip(inputs["media"][0], found.values(), strict=True):
        (pixels,) = item.content.values()
        expected = []
        for frame in dense_tower(part(tensors, "vision_tower/vision_model."), VISION, pixels):
            joined = windows(frame, k, by_columns=kind == "mlp_downsample")
            expected += [project(part(tensors, "mm_projector/"), kind, joined), after]
        assert len(got) == item.tokens == len(pixels) * (math.ceil(5 / k) ** 2 + len(newline))
        assert torch.allclose(got, torch.cat(expected), atol=1e-5)
    assert family.dense_count(6) == inputs["media"][0][0].tokens


def test_the_llm_equals_transformers_own(written, clip):
    folder, tensors, _, language, model = written
    kind, config = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[language]
    plain = kind(config.from_dict(json.loads((folder / "llm" / "config.json").read_text()))).eval()
    plain.load_state_dict(part(tensors, "llm/"), strict=True)
    inputs = model.prepare("<video>\nwhat moves?", [clip])
    embedded = model.embed(inputs["input_ids"], inputs["media"])
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, plain(inputs_embeds=embedded).logits, atol=1e-5)


def test_asking_disabling_saving_unwrapping(written, clip, tmp_path):
    folder, tensors, _, _, model = written
    assert isinstance(model.ask(clip, "what moves?", max_new_tokens=3), str)
    gazed = model.stats["visual_tokens"]
    with model.disabled():
        model.ask(clip, "what moves?", max_new_tokens=2)
        assert model.stats["visual_tokens"] == model.stats["dense_tokens"] > gazed
    model.save_pretrained(tmp_path)
    parts = {name: tmp_path / "base" / name for name in ("llm", "vision_tower", "mm_projector")}
    saved = {f"{name}/{key}": t for name, at in parts.items() for key, t in load_file(at / "model.safetensors").items()}
    assert saved.keys() == tensors.keys() and all(torch.equal(saved[key], tensors[key]) for key in saved)
    assert json.loads((tmp_path / "base" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    again = am.load(tmp_path, cache=False)
    assert torch.equal(*(m(**m.prepare("<video> what?", [clip])).logits for m in (model, again)))
    assert isinstance(again.unwrap(), VilaModel)


def test_sentencepiece_ids_are_sentencepieces_own(llama):
    folder, model = llama
    plain = sentencepiece.SentencePieceProcessor(model_file=str(folder / "llm" / "tokenizer.model"))
    tokenizer = read_llama_tokenizer(folder, "llm")
    for text in ("what does the sign say?", "USER: 12 frames\nand  more ✓ é", "moves", "hesthatheenthis", "x"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == plain.encode(text)
        assert tokenizer(text)["input_ids"] == [1, *plain.encode(text)]
        assert tokenizer.decode(plain.encode(text)) == text
    assert read_llama_tokenizer(folder) is None  # nothing of the kind in the outer folder
    size = plain.vocab_size()
    assert [model.tokenizer.convert_tokens_to_ids(t) for t in ("<vila/sentinel>", "<image>", "<vila/video>")] == [
        size,
        size + 1,
        size + 2,
    ]
    # The placeholders lie beyond the embedding table, and no id but theirs does.
    assert model.family.video_token_id >= model.base.get_input_embeddings().num_embeddings == size


def test_a_damaged_sentencepiece_model_is_refused(tmp_path):
    write_vila(tmp_path)
    (tmp_path / "llm" / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(am.InputError, match=r"tokenizer\.model: not a sentencepiece model"):
        am.wrap(tmp_path, "all")


def shown(model, text: str) -> str:
    """A prompt as the LLM reads it."""
    return model.tokenizer.decode(model.prepare(text)["input_ids"][0])


def test_conversation_formats(llama, tmp_path):
    _, model = llama
    assert shown(model, "what moves?") == f"<s> {VICUNA}USER: what moves? ASSISTANT:"
    write_vila(tmp_path, language="qwen2")
    chat = am.wrap(tmp_path, "all", cache=False)
    assert shown(chat, "what?") == "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"  # the folder's template
    chat.unwrap()
    change(tmp_path / "config.json", chat_template="qwen2")  # one of VILA's own, by name
    system = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
    named = am.wrap(tmp_path, "all", cache=False)
    assert shown(named, "what?") == f"{system}<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"
    vocabulary = qwen_tokenizer(
        tmp_path / "llm", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], None
    )
    path = tmp_path / "llm" / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|im_start|>", "<|a|>").replace("<|im_end|>", "<|end_of_text|>"))
    write_vila(tmp_path / "third", language="qwen2")
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        (tmp_path / "third" / "llm" / name).write_bytes((tmp_path / "llm" / name).read_bytes())
    third = am.wrap(tmp_path / "third", "all", cache=False)
    text = third.family.chat("what?")
    assert text.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n")
    assert text.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert vocabulary - 1 in third.base.generation_config.eos_token_id  # <|eot_id|> ends an answer, too


def test_generation_stops_where_the_folder_says(tmp_path):
    write_vila(tmp_path, language="qwen2")
    write_json(tmp_path / "llm" / "generation_config.json", {"eos_token_id": 256, "max_length": 77})
    base = VilaModel.from_pretrained(tmp_path)
    assert base.generation_config.eos_token_id == [256, 258] and base.generation_config.max_length == 77


def test_models_of_several_scales_repeat_a_frames_channels(tmp_path, clip):
    """NVILA with dynamic S2 shows a video frame at one scale and repeats its channels for the others."""
    config = {"dynamic_s2": True, "s2": True, "s2_scales": "56,112,168"}
    tensors = write_vila(tmp_path, kind="mlp_downsample_2x2_fix", language="qwen2", copies=3, config=config)
    model = am.wrap(tmp_path, "pixel-diff", **SMALL)
    inputs = model.prepare("<video>", [clip], chat=False)
    pictures = gazed_pictures(
        part(tensors, "vision_tower/vision_model."), VISION, [2, 4], inputs["media"][0][0].content
    )
    joined = torch.cat([join(picture.repeat(1, 3), 4) for picture in pictures])
    expected = project(part(tensors, "mm_projector/"), "mlp_downsample_2x2_fix", joined)
    assert torch.allclose(visual(model, inputs, model.family.video_token_id), expected, atol=1e-5)
    with model.disabled():
        inputs = model.prepare("<video>", [clip], chat=False)
        (pixels,) = inputs["media"][0][0].content.values()
        frame = dense_tower(part(tensors, "vision_tower/vision_model."), VISION, pixels[:1])[0].repeat(1, 3)
        expected = project(part(tensors, "mm_projector/"), "mlp_downsample_2x2_fix", windows(frame, 2, False))
        found = visual(model, inputs, model.family.video_token_id)
        assert torch.allclose(found[: len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize("as_text", [True, False])
def test_the_configured_video_encoder_is_followed(tmp_path, clip, as_text):
    """Averages over frames and rows, and other texts around the frames, as some of the folders have them."""
    encoder = {
        "_target_": "x.TSPVideoEncoder",
        "pool_sizes": [[4, 1, 1], [6, 3, 3]],
        "start_tokens": "a",
        "sep_tokens": "b",
    }
    encoder["end_tokens"] = None
    tensors = write_vila(
        tmp_path,
        kind="linear",
        language="qwen2",
        config={"video_encoder": json.dumps(encoder) if as_text else encoder},
    )
    model = am.wrap(tmp_path, "pixel-diff", **SMALL)
    with model.disabled():
        inputs = model.prepare("<video>", [clip], chat=False)
        found = visual(model, inputs, model.family.video_token_id)
    (pixels,) = inputs["media"][0][0].content.values()
    states = dense_tower(part(tensors, "vision_tower/vision_model."), VISION, pixels)
    grid = project(part(tensors, "mm_projector/"), "linear", states).unflatten(1, (5, 5))  # (6, 5, 5, D)
    table = tensors["llm/model.embed_tokens.weight"]
    before, between = table[[ord("a")]], table[[ord("b")]]
    first, rest = grid[:4].mean(0).flatten(0, 1), grid[4:].mean(0).flatten(0, 1)
    corners = [grid[:, r : r + 3, c : c + 3].mean((0, 1, 2)) for r in (0, 3) for c in (0, 3)]
    expected = torch.cat([before, first, before, rest, between, before, torch.stack(corners), between])
    assert len(found) == model.family.dense_count(6) == len(expected)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_folder_is_known_by_its_sub_folders_or_by_its_config(tmp_path):
    write_vila(tmp_path)
    outer = json.loads((tmp_path / "config.json").read_text())
    for names in (("llm_cfg",), ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg")):
        write_json(tmp_path / "config.json", {key: value for key, value in outer.items() if key not in names})
        assert isinstance(am.wrap(tmp_path, "all").unwrap(), VilaModel)
    (tmp_path / "mm_projector" / "config.json").unlink()
    write_json(tmp_path / "config.json", outer)
    with pytest.raises(am.InputError, match=r"no mm_projector/config\.json"):
        am.wrap(tmp_path, "all")


def test_missing_and_left_over_keys_are_listed(tmp_path):
    write_vila(tmp_path)
    drop_keys(tmp_path / "mm_projector" / "model.safetensors", ["layers.2.weight"], {"layers.9.bias": torch.zeros(1)})
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    drop_keys(tmp_path / "vision_tower" / "model.safetensors", [name])
    with pytest.raises(am.InputError) as caught:
        am.wrap(tmp_path, "all")
    assert str(caught.value).endswith(
        f"missing: mm_projector/layers.2.weight, vision_tower/{name}; left over: mm_projector/layers.9.bias"
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mm_projector/config.json",
            {"mm_projector_type": "resampler"},
            "projector type 'resampler'.*mlp_downsample_3x3_fix",
        ),
        ("mm_projector/config.json", {"mm_projector_type": "mlp_downsample_3x3_fix"}, "takes 128 channels.*multiple"),
        ("vision_tower/config.json", {"model_type": "intern_vit_6b"}, "intern_vit_6b; gazing needs SigLIP"),
        ("llm/config.json", {"model_type": "mpt"}, "LLM is a mpt; supported: llama, qwen2"),
        ("config.json", {"s2": True}, "several sizes"),
        ("config.json", {"mm_vision_select_feature": "cls"}, "'cls' is not cls_patch or patch"),
        ("config.json", {"video_encoder": "{"}, "cannot read the encoder"),
        ("config.json", {"video_encoder": {"pool_sizes": [[0, 1, 1]]}}, "triples of positive"),
    ],
)
def test_folders_that_cannot_be_gazed_are_refused(tmp_path, name, changes, message):
    write_vila(tmp_path)
    change(tmp_path / name, **changes)
    with pytest.raises(am.InputError, match=message):
        am.wrap(tmp_path, "all")


def test_select_layer_is_followed(tmp_path, clip):
    tensors = write_vila(tmp_path, kind="linear", config={"mm_vision_select_layer": -3})
    model = am.wrap(tmp_path, "pixel-diff", **SMALL)
    assert model.family.feature_layers == [-3]
    inputs = model.prepare("<video>", [clip], chat=False)
    shallower = {**VISION, "num_hidden_layers": 2}
    pictures = gazed_pictures(
        part(tensors, "vision_tower/vision_model."), shallower, [2, 4], inputs["media"][0][0].content
    )
    expected = project(part(tensors, "mm_projector/"), "linear", torch.cat(pictures))
    assert torch.allclose(visual(model, inputs, model.family.video_token_id), expected, atol=1e-5)


def test_a_processor_without_the_media_tokens_is_refused(llama):
    from autogaze_mllm.mllm.tiny import tiny_model

    folder, _ = llama
    _, processor = tiny_model("llava")
    with pytest.raises(am.InputError, match="tokenizer has no <vila/video>"):
        am.wrap(VilaModel.from_pretrained(folder), "all", processor=processor)


def test_a_hub_repository_is_loaded_without_a_connection(tmp_path, clip):
    """From the hub's cache, which also knows which files a repository does not have."""
    place = tmp_path / "models--org--tiny"
    write_vila(place / "snapshots" / "0123abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    hub = {"cache_dir": str(tmp_path), "local_files_only": True}
    with pytest.raises(am.InputError, match="could not be fetched"):
        am.wrap("org/tiny", "pixel-diff", hub=hub, **SMALL)
    for folder, names in {
        "llm": ["generation_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"],
        "vision_tower": ["model.safetensors.index.json"],
        "mm_projector": ["model.safetensors.index.json"],
    }.items():
        absent = place / ".no_exist" / "0123abc" / folder
        absent.mkdir(parents=True)
        for name in [*names, "chat_template.json"]:
            (absent / name).touch()
    model = am.wrap("org/tiny", "pixel-diff", hub=hub, **SMALL)
    assert isinstance(model.ask(clip, "what?", max_new_tokens=2), str)
