"""Writes an untrained tiny MLLM in the VILA layout, ready for `autogaze-mllm finetune`.

A SigLIP tower of 192 channels and three layers on the gaze model's own scales (32+64+112+224 at patch 16), which looks
at every frame by itself; a projector that joins four gazed patches to a token; a Qwen2 LLM of 192 channels and four
layers; and a byte-level tokenizer with a few merges learnt from SignVid's questions, codes left out. All in about 3.6 M
parameters.

    python scripts/make_bundled_mllm.py untrained data/stills      # the videos are what the patch filters are made from
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, Qwen2Config, SiglipVisionConfig, SiglipVisionModel

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import output_folder, write_json
from autogaze_mllm.gaze.grid import DEFAULT_GRID
from autogaze_mllm.gaze.pipeline import gaze_video
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.mllm.native.vila import VilaModel
from autogaze_mllm.signvid.conversations import BY_COLOUR, BY_TIME, PROMPT
from autogaze_mllm.signvid.questions import INSTRUCTION
from autogaze_mllm.signvid.signs import ARROWS, COLOURS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<vila/sentinel>", "<image>", "<vila/video>")
ENDS = {"eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"}
WORDS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"  # as Qwen2 splits, contractions apart
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 16,
    "vision_use_head": False,
    "scales": "32+64+112+224",
    "attn_type": "block_causal",
    "frame_independent_encoding": True,
}
TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1 << 18,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}
PROJECTOR = "mlp_downsample_2x2_fix"
PIXELS = {
    "image_processor_type": "SiglipImageProcessor",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}


def write_tokenizer(folder: Path) -> int:
    """vocab.json, merges.txt and tokenizer_config.json of a Qwen2Tokenizer. -> ids, the special tokens included."""
    sentences = [
        BY_COLOUR,
        BY_TIME,
        INSTRUCTION,
        PROMPT.format("\n"),
        "What does the sign say?",
        "Which of these signs comes first?",
        "How many of these signs are shown: , , ?",
        "none. Answer:",
        "user\n assistant\n",
        " ".join((*COLOURS, *ARROWS, "")),
        " ".join(("", *COLOURS, *ARROWS)),
    ]
    plain = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=sorted(plain), show_progress=False)
    tokenizer.train_from_iterator(sentences * 4, trainer)
    made = tokenizer.to_str()
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in json.loads(made)["model"]["merges"]]
    vocabulary = {token: number for number, token in enumerate(sorted(plain))}
    for pair in merges:
        vocabulary.setdefault(pair.replace(" ", ""), len(vocabulary))
    output_folder(folder)
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(len(vocabulary) + n): {"content": token, **entry} for n, token in enumerate(SPECIAL)
            },
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": TEXT["max_position_embeddings"],
            "chat_template": TEMPLATE,
        },
    )
    return len(vocabulary) + len(SPECIAL)


def gazed_patches(folder: Path, videos: int = 150) -> torch.Tensor:
    """(n, 3 * 16 * 16) patches that `pixel-diff` keeps of these videos."""
    paths = sorted(folder.glob("*.mp4"))[:videos]
    if not paths:
        raise InputError(f"{folder}: no videos (*.mp4)")
    settings = VideoSettings(frames=4, ratio=0.3)
    return torch.cat([gaze_video(path, "pixel-diff", settings, grid=DEFAULT_GRID).patches for path in paths])


@torch.no_grad()
def prime_tower(core: Any, patches: torch.Tensor) -> None:
    """Starting values that see more than random ones do.

    The patch filters are the principal components of the patches, whitened: fine print is weak in pixels and is not in
    these. The first layer's hidden units are patches themselves (a radial basis, drawn among the busier half): each
    answers to what looks like its patch, which makes print all but linearly separable before anything is learnt.
    """
    embedding, layer = core.embeddings.patch_embedding, core.encoder.layers[0]
    channels, hidden = embedding.weight.shape[0], layer.mlp.fc1.weight.shape[0]
    centred = patches.double() - patches.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    filters = (vectors[:, -channels:] / (values[-channels:] + 1e-3).sqrt()).T.float()
    embedding.weight.copy_(filters.view_as(embedding.weight))
    embedding.bias.zero_()
    core.embeddings.position_embedding.weight.mul_(3)  # in proportion to the filters' answers
    answers = patches @ filters.T
    busy = answers[answers.norm(dim=1) > answers.norm(dim=1).median()]
    drawn = torch.randperm(len(busy)).repeat(-(-hidden // len(busy)))[:hidden]  # again from the start if they are few
    likes = torch.nn.functional.layer_norm(busy[drawn], (channels,))
    gain, threshold = 8.0, 0.2  # of the cosine between a patch and a unit's
    layer.mlp.fc1.weight.copy_(gain * likes / channels)
    layer.mlp.fc1.bias.fill_(-gain * threshold)
    layer.mlp.fc2.weight.normal_(std=0.3)
    layer.self_attn.out_proj.weight.mul_(0.2)  # attention begins as a small addition


def write_model(folder: Path, videos: Path | None, seed: int) -> None:
    """videos: what the tower's starting values are made from; None: random ones."""
    size = write_tokenizer(folder / "llm")
    first = size - len(SPECIAL)
    ends = {name: first + SPECIAL.index(token) for name, token in ENDS.items()}
    text = {**TEXT, "vocab_size": size, **ends}
    outer = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "llm_cfg": text,
        "vision_tower_cfg": VISION,
        "mm_projector_cfg": {"mm_projector_type": PROJECTOR, "model_type": "v2l_projector"},
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "cls_patch",
        "mm_hidden_size": VISION["hidden_size"],
        "image_aspect_ratio": "resize",
        "hidden_size": text["hidden_size"],
    }
    files = {
        "config.json": outer,
        "llm/config.json": {**text, "architectures": ["Qwen2ForCausalLM"]},
        "vision_tower/config.json": VISION,
        "mm_projector/config.json": outer["mm_projector_cfg"],
    }
    write_json(output_folder(folder / "vision_tower") / "preprocessor_config.json", PIXELS)
    torch.manual_seed(seed)
    config: Any = VilaModel.read_config(folder, files)
    config.vision_config = SiglipVisionConfig.from_dict(dict(VISION))
    config.text_config = Qwen2Config.from_dict(dict(text))
    tower = SiglipVisionModel(config.vision_config)
    llm = AutoModelForCausalLM.from_config(config.text_config)
    model = VilaModel(config, tower, VilaModel.make_projector(config, {}, str(folder)), llm)
    core = getattr(tower, "vision_model", tower)
    if videos is not None:
        prime_tower(core, gazed_patches(videos))
    with torch.no_grad():
        # A patch may stand at any of the four places that are joined, so all of them begin with the same weights:
        # otherwise everything is learnt four times.
        projector: Any = model.mm_projector
        joining = projector.layers[2].weight
        joining.copy_(joining[:, : VISION["hidden_size"]].repeat(1, projector.merge))
    model.save_pretrained(folder)
    print(
        f"{folder}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters, {text['vocab_size']} ids"
    )


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("videos", type=Path, nargs="?", help="folder of videos (*.mp4)")
    parser.add_argument("--seed", type=int, default=0)
    return run_program(parser, lambda given: write_model(given.folder, given.videos, given.seed))


if __name__ == "__main__":
    sys.exit(main())
