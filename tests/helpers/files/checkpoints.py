"""Writes tiny random checkpoints in the published layouts, by hand: nothing of the package is used.

Every function returns the tensors that it wrote, by their keys, so that a test can compare.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 70,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "torch_dtype": "float32",
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PIXELS = {
    "image_processor_type": "SiglipImageProcessor",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
    "rescale_factor": 1 / 255,
}

Tensors = dict[str, torch.Tensor]


class Random:
    """Tensors from a seed: weights small, norms near one."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int, around: float = 0.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=self.generator) * 0.15 + around).to(self.dtype)

    def linear(self, name: str, into: int, out: int, bias: bool = True) -> Tensors:
        return {f"{name}.weight": self(out, into), **({f"{name}.bias": self(out)} if bias else {})}

    def norm(self, name: str, size: int) -> Tensors:
        return {f"{name}.weight": self(size, around=1.0), f"{name}.bias": self(size)}


def siglip(random: Random, vision: dict[str, Any], head: bool = False) -> Tensors:
    """Keys below `vision_model.`."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tensors = {
        "embeddings.patch_embedding.weight": random(width, 3, patch, patch),
        "embeddings.patch_embedding.bias": random(width),
        "embeddings.position_embedding.weight": random((vision["image_size"] // patch) ** 2, width),
        **random.norm("post_layernorm", width),
    }
    for layer in range(vision["num_hidden_layers"]):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= random.linear(f"{name}.self_attn.{part}", width, width)
        tensors |= random.linear(f"{name}.mlp.fc1", width, inner) | random.linear(f"{name}.mlp.fc2", inner, width)
        tensors |= random.norm(f"{name}.layer_norm1", width) | random.norm(f"{name}.layer_norm2", width)
    if head:
        tensors |= {"head.probe": random(1, 1, width), "head.attention.in_proj_weight": random(3 * width, width)}
        tensors |= {"head.attention.in_proj_bias": random(3 * width)}
        tensors |= random.linear("head.attention.out_proj", width, width) | random.norm("head.layernorm", width)
        tensors |= random.linear("head.mlp.fc1", width, inner) | random.linear("head.mlp.fc2", inner, width)
    return tensors


def llm(random: Random, text: dict[str, Any], vocabulary: int, tied: bool = False) -> Tensors:
    """Keys of Qwen2ForCausalLM or LlamaForCausalLM; only the former has biases in its attention."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    heads = width // text["num_attention_heads"] * text["num_key_value_heads"]
    bias = text["model_type"] == "qwen2"
    tensors = {"model.embed_tokens.weight": random(vocabulary, width), "model.norm.weight": random(width, around=1.0)}
    for layer in range(text["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for part, out in (("q_proj", width), ("k_proj", heads), ("v_proj", heads)):
            tensors |= random.linear(f"{name}.self_attn.{part}", width, out, bias)
        tensors |= random.linear(f"{name}.self_attn.o_proj", width, width, False)
        for part, sides in (("gate_proj", (width, inner)), ("up_proj", (width, inner)), ("down_proj", (inner, width))):
            tensors |= random.linear(f"{name}.mlp.{part}", *sides, False)
        tensors[f"{name}.input_layernorm.weight"] = random(width, around=1.0)
        tensors[f"{name}.post_attention_layernorm.weight"] = random(width, around=1.0)
    return tensors if tied else tensors | {"lm_head.weight": random(vocabulary, width)}


def projector(random: Random, kind: str, channels: int, width: int, middle: int = 0) -> Tensors:
    """Keys below `mm_projector.`. middle: channels between the two steps of the 3 x 3 type."""
    if kind == "linear":
        return random.linear("layers", channels, width)
    if kind == "mlp2x_gelu":
        return random.linear("layers.0", channels, width) | random.linear("layers.2", width, width)
    if kind in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        tensors = random.norm("layers.1", 4 * channels) | random.linear("layers.2", 4 * channels, width)
        return tensors | random.linear("layers.4", width, width)
    middle = middle or 3 * channels
    tensors = random.norm("layers.1", 9 * channels) | random.linear("layers.2", 9 * channels, middle)
    tensors |= random.norm("layers.4", middle) | random.linear("layers.5", middle, width)
    return tensors | random.linear("layers.7", width, width)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def write_shards(folder: Path, tensors: Tensors, shards: int = 1) -> None:
    """model.safetensors, or several with their index, keys dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensor for place, (key, tensor) in enumerate(tensors.items()) if place % shards == number}
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def qwen_tokenizer(folder: Path, more: list[str], template: str | None = CHATML) -> int:
    """Byte-level tokenizer without merges: 256 bytes, the three special tokens of Qwen2, `more`. -> its size."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # how byte-level tokenizers write bytes
    rest = [number for number in range(256) if number not in plain]
    written = {**{b: chr(b) for b in plain}, **{b: chr(256 + place) for place, b in enumerate(rest)}}
    write_json(folder / "vocab.json", {written[b]: b for b in range(256)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(256 + n): {"content": token, **entry} for n, token in enumerate(special)},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 32768,
    }
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))
    return 256 + len(special)


def llama_tokenizer(folder: Path) -> int:
    """A sentencepiece model and nothing else, as VILA-1.5 has it. -> its size."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        "what moves in the video and what does the sign say? the other one is there, then this and that and these",
        "USER: how many frames? ASSISTANT: 0123456789",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=model,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    write_json(folder / "tokenizer_config.json", config | tokens)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()


def write_nvila(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = False,
    head: bool = False,
    dtype: torch.dtype = torch.float32,
    vision: dict[str, Any] | None = None,
    pixels: dict[str, Any] | None = None,
    middle: int = 40,
) -> Tensors:
    """The layout of NVILA-HD-Video, in two shards. vision, pixels: changes of vision_config and of the processor's."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(seed, dtype)
    tower = {**VISION, "scales": "28+56", "attn_type": "block_causal", "frame_independent_encoding": False}
    tower |= {"max_embed_batch_size": None, **(vision or {})}
    size = qwen_tokenizer(folder, ["[BOS]", "[PAD]", "<vila/sentinel>", "<image>", "<vila/video>"])
    text = {**TEXT, "model_type": "qwen2", "vocab_size": size, "eos_token_id": 258, "tie_word_embeddings": tied}
    write_json(
        folder / "config.json",
        {
            "model_type": "nvila",
            "architectures": ["NVILAForConditionalGeneration"],
            "auto_map": {"AutoConfig": "configuration_nvila.NVILAConfig"},
            "text_config": text,
            "vision_config": tower,
            "image_token_id": size - 2,
            "video_token_id": size - 1,
            "max_batch_size_siglip": 16,
        },
    )
    generation = {"_from_model_config": True, "eos_token_id": 258, "pad_token_id": 256}
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "preprocessor_config.json", {**PIXELS, "size": {"height": 56, "width": 56}, **(pixels or {})})
    tensors = under("vision_tower.vision_model.", siglip(random, tower, head))
    tensors |= under(
        "mm_projector.",
        projector(random, "mlp_downsample_3x3_fix", tower["hidden_size"], text["hidden_size"], middle),
    )
    tensors |= under("llm.", llm(random, text, size, tied))
    write_shards(folder, tensors, 2)
    return tensors


def write_vila(
    folder: Path,
    *,
    kind: str = "mlp_downsample",
    language: str = "llama",
    seed: int = 0,
    copies: int = 1,
    vision: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Tensors:
    """A VILA-style folder; the keys returned begin with their sub-folder. copies: channels of the projector come this
    often, as in models of several image scales. vision, config: changes of the tower's and of the outer config.json."""
    random = Random(seed)
    tower = {**VISION, **(vision or {})}
    size = llama_tokenizer(folder / "llm") if language == "llama" else qwen_tokenizer(folder / "llm", [])
    text = {**TEXT, "model_type": language, "vocab_size": size, "architectures": [f"{language.title()}ForCausalLM"]}
    text |= {"eos_token_id": 2 if language == "llama" else 258, "bos_token_id": 1, "pad_token_id": 0}
    outer = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "llm_cfg": text,
        "vision_tower_cfg": tower,
        "mm_projector_cfg": {"mm_projector_type": kind, "model_type": "v2l_projector"},
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "mm_hidden_size": tower["hidden_size"] * copies,
        "image_aspect_ratio": "resize",
        "hidden_size": text["hidden_size"],
    }
    write_json(folder / "config.json", outer | (config or {}))
    write_json(folder / "llm" / "config.json", text)
    write_json(folder / "vision_tower" / "config.json", tower)
    size = {"height": tower["image_size"], "width": tower["image_size"]}
    write_json(folder / "vision_tower" / "preprocessor_config.json", {**PIXELS, "size": size})
    write_json(folder / "mm_projector" / "config.json", outer["mm_projector_cfg"])
    language_tensors = llm(random, text, text["vocab_size"])
    tower_tensors = under("vision_model.", siglip(random, tower))
    projector_tensors = projector(random, kind, tower["hidden_size"] * copies, text["hidden_size"])
    write_shards(folder / "llm", language_tensors, 2)
    write_shards(folder / "vision_tower", tower_tensors)
    write_shards(folder / "mm_projector", projector_tensors)
    parts = {"llm/": language_tensors, "vision_tower/": tower_tensors, "mm_projector/": projector_tensors}
    return {prefix + key: tensor for prefix, part in parts.items() for key, tensor in part.items()}


def drop_keys(path: Path, keys: list[str], more: Tensors | None = None) -> None:
    """Rewrites one safetensors file without some keys and with others."""
    from safetensors.torch import load_file

    tensors = {key: tensor for key, tensor in load_file(path).items() if key not in keys}
    save_file(tensors | (more or {}), path, metadata={"format": "pt"})
