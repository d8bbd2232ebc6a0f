"""Expected memory of fine-tuning NVILA-8B-HD-Video, from its shapes alone; no weights are needed.

Usage: python benchmarks/finetune_memory.py [--tokens N] [--patches N] [--learnt N] [--json]

One sample per process, bf16, gradient checkpointing: the estimate that `autogaze-mllm finetune --dry-run` makes of a
real data set. What the runtime itself takes (CUDA, buffers of communication) comes on top.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from transformers import AutoModelForCausalLM, Qwen2Config, SiglipVisionConfig, SiglipVisionModel

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.finetuning.config import PRESETS, AdapterConfig, PartConfig
from autogaze_mllm.finetuning.memory_estimate import Load, ModelDims, estimate_memory
from autogaze_mllm.mllm.native import NativeConfig
from autogaze_mllm.mllm.native.checkpoint import without_memory
from autogaze_mllm.mllm.native.nvila import PROJECTOR
from autogaze_mllm.mllm.native.projectors import build_projector

VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT = {
    "vocab_size": 151651,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
# (preset, processes, ZeRO stage, offload)
ROWS = [
    ("lora", 1, 0, False),
    ("align", 1, 0, False),
    ("sft", 1, 2, True),
    ("sft", 8, 2, False),
    ("sft", 8, 3, False),
    ("sft", 16, 3, False),
    ("sft", 8, 3, True),
]


def shapes() -> tuple[ModelDims, dict[str, int], int]:
    """The shape, parameters of each part, and inputs plus outputs of all linear layers inside the LLM's layers."""
    vision, text = SiglipVisionConfig(**VISION), Qwen2Config(**TEXT)
    config = NativeConfig("nvila", "", {}, vision_config=vision, text_config=text)
    with without_memory():
        llm: Any = AutoModelForCausalLM.from_config(text)
        tower: Any = SiglipVisionModel(vision)
        projector = build_projector(PROJECTOR, {}, vision.hidden_size, text.hidden_size, "NVILA-8B-HD-Video")
    parts = {"tower": tower, "projector": projector, "llm": llm}
    sizes = {part: sum(parameter.numel() for parameter in module.parameters()) for part, module in parts.items()}
    ends = sum(sum(p.shape) for name, p in llm.named_parameters() if "_proj.weight" in name)
    return ModelDims.of(config, clip_frames=16), sizes, ends


def trained(preset: dict[str, PartConfig], sizes: dict[str, int], ends: int) -> dict[str, dict[str, int]]:
    found = {}
    for part, size in sizes.items():
        mode = preset[part].mode
        added = AdapterConfig().rank * ends if mode == "lora" else 0
        found[part] = {"parameters": size + added, "trained": size if mode == "full" else added}
    return found


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=16384, help="LLM tokens of a sample")
    parser.add_argument("--patches", type=int, default=100_000, help="patches that its videos keep")
    parser.add_argument("--learnt", type=int, default=256, help="tokens of its answers")
    parser.add_argument("--json", action="store_true")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    shape, sizes, ends = shapes()
    load = Load(arguments.tokens, arguments.patches, arguments.learnt)
    rows = []
    for preset, processes, zero, offload in ROWS:
        plans = PRESETS[preset]
        parts = trained(plans, sizes, ends)
        estimate = estimate_memory(
            shape, parts, plans, load, bf16=True, processes=processes, zero=zero, offload=offload
        )
        name = f"ZeRO-{zero}" + (", offload" if offload else "") if zero else "none"
        count = sum(part["trained"] for part in parts.values())
        rows.append({"preset": preset, "gpus": processes, "deepspeed": name, "trained": count, **estimate.to_dict()})
    if arguments.json:
        print(to_json({"parameters": sizes, "rows": rows}))
        return
    print("parameters: " + ", ".join(f"{part} {size / 1e6:.0f} M" for part, size in sizes.items()))
    print(
        "| preset | GPUs | DeepSpeed | trained | weights | gradients | optimiser | activations | GPU, GiB | host, GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        amounts = [row[name] for name in ("weights", "gradients", "optimizer", "activations", "device", "host")]
        cells = " | ".join(f"{amount:.1f}" for amount in amounts)
        print(f"| {row['preset']} | {row['gpus']} | {row['deepspeed']} | {row['trained'] / 1e6:.0f} M | {cells} |")


if __name__ == "__main__":
    sys.exit(main())
