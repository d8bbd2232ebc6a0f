"""FinetuneConfig: everything that a fine-tuning is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..common.errors import InputError
from ..common.fields import Names, Number, setting, settings

Mode = Literal["off", "full", "lora"]
Precision = Literal["auto", "bf16", "fp32"]
TooLong = Literal["error", "truncate"]
Report = Literal["none", "tensorboard", "wandb"]
PARTS = ("tower", "projector", "llm")
WHAT, HOW, ALONG = "what", "how", "along"  # groups of options


@settings()
class PartConfig:
    """off: frozen. full: all weights. lora: low-rank additions to the linear layers, the weights themselves frozen."""

    mode: Mode = setting(
        default="off", flag="", refusal="a part is trained 'full' or with 'lora', or is 'off'", manual="see --tower"
    )
    lr: Number = setting(
        "learning rate", default=2e-5, above=0, below=1, flag="", refusal="a learning rate must lie between 0 and 1"
    )


@settings()
class AdapterConfig:
    """An addition is alpha / rank times the product of its two matrices."""

    rank: int = setting(
        default=64,
        usual=False,
        manual="rank of what LoRA adds",
        at_least=1,
        flag="--lora-rank",
        refusal="LoRA needs a rank of at least 1",
        metavar="N",
        group=WHAT,
    )
    alpha: Number = setting(
        default=16.0,
        usual=False,
        manual="over the rank, what it is scaled by",
        above=0,
        flag="--lora-alpha",
        refusal="LoRA needs an alpha above 0",
        metavar="A",
        group=WHAT,
    )
    dropout: Number = setting(
        default=0.05,
        usual=False,
        manual="share of its input that LoRA drops",
        at_least=0,
        below=1,
        flag="--lora-dropout",
        refusal="LoRA needs a dropout in [0, 1)",
        metavar="P",
        group=WHAT,
    )


@settings()
class RolloutConfig:
    """How the gaze model is trained: each video is gazed several times, and what was drawn is compared."""

    rollouts: int = setting(
        "ways to gaze a video, to learn gaze from",
        default=4,
        at_least=2,
        refusal="gaze is trained by comparing at least 2 rollouts",
        metavar="N",
        group=WHAT,
    )
    temperature: Number = setting(
        "that rollouts are drawn at",
        default=1.0,
        usual=False,
        above=0,
        below=math.inf,
        refusal="temperature must be above 0 and finite",
        metavar="T",
        group=WHAT,
    )


# `sft`: the last video stage that NVILA-HD was trained with. `align`: a new projector. `lora`: VILA's values. `gaze`:
# the gaze model alone; where a preset does not name it, it is frozen.
PRESETS: dict[str, dict[str, PartConfig]] = {
    "align": {"tower": PartConfig(), "projector": PartConfig("full", 1e-3), "llm": PartConfig()},
    "sft": {part: PartConfig("full", 2e-5) for part in PARTS},
    "lora": {"tower": PartConfig(), "projector": PartConfig("full", 2e-5), "llm": PartConfig("lora", 1e-4)},
    "gaze": {**{part: PartConfig() for part in PARTS}, "gaze": PartConfig("full", 1e-5)},
}


def _count(name: str, help: str = "", *, least: int, default: int, **words: Any) -> Any:
    refusal = words.pop("refusal", f"{name} must be a whole number of at least {least}")
    return setting(help, default=default, at_least=least, refusal=refusal, **words)


@settings()
class FinetuneConfig:
    """A fine-tuning: of what, on what, how long and how fast."""

    data: Names = setting("json or jsonl files of samples", flag="", refusal="data must be a list of file names")
    output: str = setting("where checkpoints and the result go", flag="")
    media_root: str | None = setting(
        "what relative media paths start from",
        default=None,
        usual=False,
        manual="what relative media paths start from, by default each data file's folder",
        metavar="FOLDER",
    )
    eval_data: Names = setting(
        "samples that are not trained on", default=(), flag="", refusal="eval_data must be a list of file names"
    )
    # What is trained, for tower, projector and llm, and for gaze unless that is frozen.
    parts: Mapping[str, PartConfig] = Field(default_factory=lambda: PRESETS["sft"])
    lora: AdapterConfig = AdapterConfig()
    rollouts: RolloutConfig = RolloutConfig()
    epochs: Number = setting(default=1.0, usual=False, manual="passes over the samples", above=0, group=HOW)
    max_steps: int = _count(
        "max_steps", "updates, instead of epochs", least=0, default=0, usual=False, metavar="N", group=HOW
    )
    batch_size: int = _count(
        "batch_size",
        "samples per process and step",
        least=1,
        default=1,
        manual="samples (packs, with packing) per process and step",
        metavar="N",
        group=HOW,
    )
    accumulate: int = _count("accumulate", "steps per update", least=1, default=1, metavar="N", group=HOW)
    warmup: Number = setting(
        "of the updates",
        default=0.03,
        manual="share of the updates in which the learning rate rises",
        at_least=0,
        below=1,
        refusal="warmup is a share of the updates, in [0, 1)",
        metavar="SHARE",
        group=HOW,
    )
    weight_decay: Number = setting(
        default=0.0, usual=False, manual="of weights, not of biases and norms", at_least=0, metavar="W", group=HOW
    )
    clip: Number = setting(
        "of the gradients",
        default=1.0,
        usual="default 1; 0: never",
        manual="largest norm of the gradients; 0: any",
        at_least=0,
        metavar="NORM",
        group=HOW,
    )
    max_length: int = _count(
        "max_length",
        "of a sample",
        least=1,
        default=16384,
        manual="tokens of a sample, or of a pack, at most",
        metavar="TOKENS",
        group=HOW,
    )
    too_long: TooLong = setting("longer samples; only text is ever cut", default="error", usual=False, group=HOW)
    packing: bool = setting(
        "several samples in one row, kept apart by attention", default=False, usual=False, group=HOW
    )
    group_by_length: bool = setting(
        "do not put samples of like length together",
        default=True,
        usual=False,
        manual="whether samples of like length are put together",
        off="--no-grouping",
        group=HOW,
    )
    precision: Precision = setting(default="auto", usual=False, manual="auto: bf16 where the device has it", group=HOW)
    gradient_checkpointing: bool = setting(
        "faster, and needs far more memory",
        default=True,
        usual=False,
        manual="compute activations anew in the backward pass: slower, in far less memory",
        off="--no-gradient-checkpointing",
        group=HOW,
    )
    deepspeed: str | None = setting(
        "zero2, zero3, zero2_offload, zero3_offload or a json file",
        default=None,
        usual=False,
        metavar="NAME",
        group=HOW,
    )
    save_steps: int = _count(
        "save_steps",
        "updates between checkpoints; 0: none",
        least=0,
        default=500,
        usual=False,
        metavar="N",
        group=ALONG,
    )
    save_total_limit: int = _count("save_total_limit", "checkpoints kept", least=1, default=2, metavar="N", group=ALONG)
    eval_steps: int = _count(
        "eval_steps",
        "updates between evaluations",
        least=0,
        default=0,
        usual=False,
        manual="updates between evaluations; 0: one, at the end",
        metavar="N",
        group=ALONG,
    )
    eval_benchmark: str | None = setting(
        "a benchmark's data, asked at every evaluation (see eval)",
        default=None,
        usual=False,
        metavar="NAME=FOLDER",
        group=ALONG,
    )
    eval_limit: int = _count(
        "eval_limit",
        "only its first N questions",
        least=0,
        default=0,
        usual=False,
        manual="only the benchmark's first questions; 0: all",
        metavar="N",
        group=ALONG,
    )
    log_steps: int = _count(
        "log_steps",
        least=1,
        default=10,
        usual=False,
        manual="updates between lines of the log",
        metavar="N",
        group=ALONG,
    )
    report: Report = setting(default="none", usual=False, manual="where curves go", group=ALONG)
    workers: int = _count("workers", "processes that read samples", least=0, default=2, metavar="N", group=HOW)
    seed: int = _count(
        "seed",
        least=0,
        default=42,
        at_most=2**32 - 1,
        refusal="seed must lie in [0, 2**32 - 1]",
        usual=False,
        manual="of everything random",
        group=HOW,
    )
    cpu: bool = setting("do not use an accelerator", default=False, usual=False, group=HOW)
    resume: str | None = setting("go on (from the latest)", default=None, flag="", manual="`auto`, or a checkpoint")
    cache: str | None = setting(
        "where gazed videos are kept",
        default=None,
        usual=False,
        manual="folder of the gazed videos, which grows as needed; by default one in the user's cache",
        metavar="FOLDER",
        group=HOW,
    )
    index: str | None = setting(
        "take videos as `index` left them there",
        default=None,
        usual=False,
        manual="folder that [`index`](indexing.md) filled for this model: videos that are there are not gazed "
        "again; its gaze and settings hold unless others are given",
        metavar="DIR",
        group=HOW,
    )
    progress: bool = setting("show bars", default=True, flag="")

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no data file was given")
        if self.parts.keys() | {"gaze"} != {*PARTS, "gaze"}:
            got = ", ".join(self.parts)
            raise InputError(f"parts must be {', '.join(PARTS)} and, where it is trained, gaze; got {got}")
        object.__setattr__(self, "parts", {**self.parts, "gaze": self.parts.get("gaze", PartConfig())})
        if all(plan.mode == "off" for plan in self.parts.values()):
            raise InputError("nothing is switched on: train the projector, the tower, the LLM or the gaze model")
        if self.trains_gaze and self.packing:
            raise InputError("packing does not go with training gaze: how long samples are is not known beforehand")
        if self.trains_gaze and self.index is not None:
            raise InputError("a gaze model that is trained sees all videos anew: leave index out")
        for name in ("eval_steps", "eval_benchmark"):
            if getattr(self, name) and not self.eval_data:
                raise InputError(f"{name} needs eval_data")

    @property
    def trains_gaze(self) -> bool:
        return self.parts["gaze"].mode != "off"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
