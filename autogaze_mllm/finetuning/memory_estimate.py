"""How much memory a fine-tuning needs, estimated from shapes alone.

Weights, gradients and optimiser state are exact; activations are counted tensor by tensor for one layer, and the fixed
costs of the runtime (CUDA context, kernels' work space, fragmentation) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import PartConfig

GIB = 1 << 30
ADAM = 8  # bytes of Adam's two moments, in float32
MASTER = 4  # bytes of DeepSpeed's float32 copy of a weight
BUCKET = 5e8  # elements of a gradient bucket under ZeRO-2, as in the presets; ZeRO-3's is a square of the LLM's width


@dataclass(frozen=True)
class Stack:
    """The transformer layers of the tower or the LLM. key_values: channels of the keys, and of the values. gated: the
    MLP has two inner branches, the norms are RMSNorms and positions are rotations, as in Llama and Qwen2.
    key_copies: how often a key is laid out for the queries that see it; block-causal attention of the tower does so
    once for each later frame of a clip.
    """

    hidden: int
    inner: int
    layers: int
    key_values: int
    gated: bool
    key_copies: float = 1.0

    def saved_by_layer(self, lora: bool) -> int:
        """Values per token that one layer keeps for its backward pass: both norms' inputs and outputs, queries, keys,
        values, the attention's output and its projection, the MLP's inner values before and after the activation.
        LoRA adds the inputs of its layers after dropout, which each keeps for itself."""
        values = 6 * self.hidden + 2 * self.key_copies * self.key_values + (4 if self.gated else 2) * self.inner
        if self.gated:
            values += 3 * self.hidden + self.key_values  # normalised inputs; queries and keys before their rotation
        if lora:
            values += (6 if self.gated else 5) * self.hidden + self.inner
        return round(values)


@dataclass(frozen=True)
class ModelDims:
    """What memory depends on. projector: values per LLM token that the projector keeps."""

    tower: Stack
    llm: Stack
    vocabulary: int
    projector: int

    @classmethod
    def of(cls, config: Any, clip_frames: int = 1) -> ModelDims:
        """From a base model's configuration. clip_frames: frames of a clip, where the tower's attention is
        block-causal."""
        vision, text = config.vision_config, config.text_config
        heads = text.num_attention_heads
        key_values = text.hidden_size // heads * (getattr(text, "num_key_value_heads", None) or heads)
        return cls(
            Stack(
                vision.hidden_size,
                vision.intermediate_size,
                vision.num_hidden_layers,
                vision.hidden_size,
                False,
                (clip_frames + 1) / 2,
            ),
            Stack(text.hidden_size, text.intermediate_size, text.num_hidden_layers, key_values, True),
            text.vocab_size,
            4 * text.hidden_size,
        )


@dataclass(frozen=True)
class Load:
    """One process's batch: LLM tokens, kept patches, tokens that are learnt."""

    tokens: int
    patches: int
    learnt: int


@dataclass(frozen=True)
class Estimate:
    """Bytes per process: on the device, and host for what is offloaded."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    host: int

    @property
    def device(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_dict(self) -> dict[str, float]:
        """In GiB."""
        named = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations")}
        return {name: value / GIB for name, value in (named | {"device": self.device, "host": self.host}).items()}


def estimate_memory(
    shape: ModelDims,
    sizes: Mapping[str, Mapping[str, int]],
    plans: Mapping[str, PartConfig],
    load: Load,
    *,
    bf16: bool,
    processes: int = 1,
    zero: int = 0,
    offload: bool = False,
    checkpointing: bool = True,
) -> Estimate:
    """sizes: as `parts.part_sizes` gives them. zero: DeepSpeed's stage, 0 without it. offload: optimiser state, and
    under stage 3 the weights, rest in the host's memory."""
    low = 2 if bf16 else 4
    trained = sum(size["trained"] for size in sizes.values())
    every = sum(size["parameters"] for size in sizes.values())
    host = 0
    if zero:
        weights = low * every
        gradients = low * int(min(BUCKET if zero == 2 else shape.llm.hidden**2, trained))
        optimizer = (ADAM + MASTER) * trained // processes
        if offload:  # gradients follow, in float32
            host, optimizer = optimizer + 4 * trained // processes, 0
        else:
            gradients += low * trained // processes
    else:
        weights = low * (every - trained) + 4 * trained
        gradients, optimizer = 4 * trained, ADAM * trained
    if zero == 3:
        # While it computes, a process holds what comes before the LLM's layers whole, and later as much of these.
        before = sizes["tower"]["parameters"] + sizes["projector"]["parameters"]
        live, held = low * (before + shape.vocabulary * shape.llm.hidden), weights // processes
        host, weights = (host + held, live) if offload else (host, held + live)
    return Estimate(weights, gradients, optimizer, activations(shape, plans, load, low, checkpointing), host)


def activations(shape: ModelDims, plans: Mapping[str, PartConfig], load: Load, low: int, checkpointing: bool) -> int:
    """Bytes kept for the backward pass, and the layer that is being computed."""

    def stack(kind: Stack, tokens: int, learns: bool, lora: bool) -> int:
        layer = kind.saved_by_layer(lora) * tokens * low
        if not learns:
            return layer
        return kind.layers * kind.hidden * tokens * low + layer if checkpointing else kind.layers * layer

    # The LLM's layers pass gradients on even where they learn nothing themselves.
    below = plans["tower"].mode != "off" or plans["projector"].mode != "off"
    total = stack(shape.llm, load.tokens, below or plans["llm"].mode != "off", plans["llm"].mode == "lora")
    total += stack(shape.tower, load.patches, plans["tower"].mode != "off", plans["tower"].mode == "lora")
    total += shape.projector * load.tokens * low
    # Logits, their float32 copy and its gradient.
    return total + load.learnt * shape.vocabulary * (low + 4 + 4)
