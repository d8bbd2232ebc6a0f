"""What a gazed video becomes in every family, and what a typical call costs: the tables of README and manual.

    python benchmarks/families.py            # prints them
    python benchmarks/families.py --write    # puts them into README.md and docs/families.md

Every base model is built without weights, from the numbers of its published configuration (PUBLISHED) and with one
layer in place of many; the rest is what the family's adapter answers. A video is a few frames of 1280 x 720 pixels, and
the patches kept of it are random ones, as many as the ratio allows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.cache_utils import DynamicLayer

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.gaze.pipeline import gaze_video
from autogaze_mllm.gaze.selectors.baselines import RandomSelector
from autogaze_mllm.gaze.token_map import TokenMap
from autogaze_mllm.mllm.families import Family, family_of_type
from autogaze_mllm.mllm.families.any_size.base import AnySizeFamily
from autogaze_mllm.mllm.families.native.base import NativeFamily
from autogaze_mllm.mllm.native.model import NativeConfig
from autogaze_mllm.mllm.native.projectors import KINDS, build_projector
from autogaze_mllm.mllm.native.vila import Surroundings
from autogaze_mllm.mllm.preprocessing import Preprocessing
from autogaze_mllm.video.sources import Video
from autogaze_mllm.vision.adapters import adapter_of

ROOT = Path(__file__).resolve().parents[1]
SIZE = (720, 1280)  # height and width of the typical video
FRAMES, RATIO = 32, 0.1
HALF = 2  # bytes of a value in half precision


@dataclass(frozen=True)
class Published:
    """Numbers of a published configuration. config, vision: what differs from transformers' defaults. projector: of the
    families that are loaded natively. cache: layers, key-value heads and channels of a head, of LLMs that keep all
    tokens in every layer. tokens: names of ids that the layout asks for."""

    name: str
    model_type: str
    tower: str
    config: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    projector: str = ""
    cache: tuple[int, int, int] | None = None
    tokens: dict[int, str] = field(default_factory=dict)


def _siglip(side: int, **more: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "image_size": side, "patch_size": 14, **more}


LLAMA_2, LLAMA_3, QWEN_2 = (32, 32, 128), (32, 8, 128), (28, 4, 128)
GEMMA_3 = {255999: "<start_of_image>", 256000: "<end_of_image>"}
GEMMA_4 = {255999: "<|image>", 258882: "<image|>"}
PUBLISHED = (
    Published("LLaVA with SigLIP", "llava", "SigLIP", {"vision_feature_select_strategy": "full"}, _siglip(384)),
    Published("LLaVA-1.5", "llava", "CLIP", cache=LLAMA_2),
    Published("LLaVA-OneVision", "llava_onevision", "SigLIP", cache=QWEN_2),
    Published("LLaVA-NeXT-Video", "llava_next_video", "CLIP", cache=LLAMA_2),
    Published("Video-LLaVA", "video_llava", "CLIP", cache=LLAMA_2),
    Published(
        "SmolVLM2 2.2B",
        "smolvlm",
        "its own (SigLIP)",
        {"scale_factor": 3},
        {"image_size": 384, "patch_size": 14},
        cache=(24, 32, 64),
    ),
    Published(
        "Idefics3 8B",
        "idefics3",
        "its own (SigLIP)",
        {"scale_factor": 2},
        {"image_size": 364, "patch_size": 14},
        cache=LLAMA_3,
    ),
    Published("InternVL3 8B", "internvl", "InternViT", cache=QWEN_2),
    Published("Aya Vision 8B", "aya_vision", "SigLIP 2", {}, _siglip(364)),
    Published("Gemma 3 4B", "gemma3", "SigLIP", {}, _siglip(896), tokens=GEMMA_3),
    Published(
        "Gemma 4 E4B",
        "gemma4",
        "its own",
        {},
        {"model_type": "gemma4_vision", "patch_size": 16, "pooling_kernel_size": 3},
        tokens=GEMMA_4,
    ),
    Published("PaliGemma 2 3B, 448", "paligemma", "SigLIP", {}, _siglip(448)),
    Published("Qwen2-VL 7B", "qwen2_vl", "its own", cache=QWEN_2),
    Published("Qwen2.5-VL 7B", "qwen2_5_vl", "its own", cache=QWEN_2),
    Published("Qwen3-VL 8B", "qwen3_vl", "its own", cache=(36, 8, 128)),
    Published("Qwen3-VL 30B-A3B", "qwen3_vl_moe", "its own", cache=(48, 4, 128)),
    Published("Qwen3.5 9B", "qwen3_5", "its own"),
    Published("Qwen3.5 35B-A3B", "qwen3_5_moe", "its own"),
    Published("VideoLLaMA3 7B", "video_llama_3", "its own", {}, {"patch_size": 14}, cache=QWEN_2),
    Published(
        "NVILA-8B-HD-Video",
        "nvila",
        "SigLIP",
        {},
        _siglip(392, scales="56+112+196+392"),
        projector="mlp_downsample_3x3_fix",
        cache=QWEN_2,
    ),
    Published("VILA-1.5 3B", "vila", "SigLIP", {}, _siglip(384), projector="mlp_downsample", cache=(32, 20, 128)),
)


class NamesOnly:
    """In place of a tokenizer: the names of ids that layouts ask for. Every text is one id."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return self.names.get(ids, "") if isinstance(ids, int) else [self.names[number] for number in ids]

    def get_vocab(self) -> dict[str, int]:
        return {"<image>": 1, "<vila/video>": 2}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [0]}


def family_of(published: Published) -> Family:
    """The family's adapter around a base model without weights."""
    adapter = family_of_type(published.model_type, published.name)
    with torch.device("meta"):
        base = _native(published) if published.projector else _by_transformers(published)
    return adapter(base, Preprocessing(NamesOnly(published.tokens), SimpleNamespace()))


def _by_transformers(published: Published) -> Any:
    vision = {"vision_config": published.vision} if "model_type" in published.vision else {}
    config = AutoConfig.for_model(published.model_type, **published.config, **vision)
    for name, value in published.vision.items():
        if name != "model_type":
            setattr(config.vision_config, name, value)
    config.get_text_config().num_hidden_layers = 1
    for name in ("num_hidden_layers", "depth"):
        if hasattr(config.vision_config, name):
            setattr(config.vision_config, name, 1)
    return AutoModelForImageTextToText.from_config(config)


def _native(published: Published) -> Any:
    vision = SiglipVisionConfig(**{name: value for name, value in published.vision.items() if name != "model_type"})
    facts = {"vision_config": vision, "text_config": Qwen2Config(), "around_image": Surroundings()}
    config = NativeConfig(
        published.model_type, "", {}, **facts, around_frame=Surroundings(), image_token_id=1, video_token_id=2
    )
    projector = build_projector(KINDS[published.projector], {}, vision.hidden_size, 64, published.name)
    tower = SiglipVisionModel(vision)
    return SimpleNamespace(config=config, vision_tower=tower, mm_projector=projector, llm=None)


@dataclass(frozen=True)
class Row:
    """One published model. positions: what a frame is selected on; dense, gazed: visual tokens of FRAMES frames, gazed
    ones at most; pixels: bytes of their patches; written: an example of the layout; runs: of FRAMES frames; shares:
    questions share what the LLM made of the video."""

    published: Published
    family: Family
    positions: int
    dense: int
    gazed: int
    pixels: int
    attention: str
    written: str
    runs: int
    shares: bool

    def cache(self, tokens: int) -> str:
        """MiB of the keys and values of so many tokens."""
        if self.published.cache is None:
            return ""
        layers, heads, channels = self.published.cache
        return f"{tokens * 2 * layers * heads * channels * HALF / 2**20:,.0f}"


def row_of(published: Published) -> Row:
    family, selector = family_of(published), RandomSelector()
    shape = family.tower_defaults()
    shape.setdefault("scales", family.default_scales(selector.grid))
    tower = family.make_tower(selector.grid, **shape, backend="sdpa", compile=False)
    settings = family.default_settings().changed(frames=2, ratio=RATIO, thumbnails=0)
    frames = np.zeros((2, *SIZE, 3), dtype=np.uint8)
    video = Video(frames, fps=1.0)
    form: dict[str, Any] = {"grid": tower.grid, "grid_for": None if tower.fixed else tower.grid_for, "device": "cpu"}
    gazed = gaze_video(video, selector, settings, **form)
    kept, tubelet = len(gazed) // 2, tower.tubelet

    def layout(counts: list[int], seconds: list[float]) -> Sequence[str | int]:
        none = torch.zeros(sum(counts), dtype=torch.long)
        return family.layout(TokenMap(counts, seconds, none, none, gazed.grid, tubelet=tubelet))

    # A tubelet keeps what any of its frames keeps.
    counts = [kept * tubelet] * (FRAMES // tubelet)
    runs = [piece for piece in layout(counts, [float(n) for n in range(len(counts))]) if isinstance(piece, int)]
    example = layout([30, 20], [(tubelet - 1) / 2, (3 * tubelet - 1) / 2])
    return Row(
        published,
        family,
        gazed.total_patches // 2,
        family.dense_count(FRAMES, SIZE),
        sum(runs),
        sum(counts) * 3 * tubelet * gazed.grid.patch**2 * HALF,
        "its own frame" if shape["frame_independent"] else shape["attn_type"].replace("_", "-"),
        "".join(piece.replace("\n", "\\n") if isinstance(piece, str) else f"[{piece}]" for piece in example),
        len(runs),
        family.share_prefix and keeps_all(published),
    )


def keeps_all(published: Published) -> bool:
    """Whether every layer of the LLM keeps all tokens, so that it can go back to the end of the video."""
    if published.projector:
        return True
    text = AutoConfig.for_model(published.model_type).get_text_config()
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=text).layers)


# -- the tables --------------------------------------------------------------------------------------------------


def becomes(row: Row) -> str:
    """What a gazed video becomes."""
    family, group = row.family, row.family.group
    if isinstance(family, NativeFamily):
        what = f"{family.projector.merge} kept patches of a frame that follow each other in gaze order"
    elif isinstance(family, AnySizeFamily) and family.tubelet > 1:
        what = f"kept square of {group} x {group} patches in {family.tubelet} frames"
    else:
        what = f"kept square of {group} x {group} patches" if group > 1 else "kept patch"
    extra = ", and each frame's class token" if family.keep_prefix else ""
    if row.runs == 1:
        extra += ", and one that ends the video" if row.written.count("[51]") else ""
        return f"a token per {what}{extra}"
    text = "with text around it" if re.sub(r"\[\d+\]", "", row.written) else "with nothing between"
    step = "pair of frames" if row.runs < FRAMES else "frame"
    return f"a token per {what}, each {step} {text}"


def short_table(rows: list[Row]) -> list[list[str]]:
    """One line for each family."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family.title, []).append(row)
    cells = [["family", "for instance", "tower", "a gazed video becomes"]]
    for title, found in families.items():
        towers = ", ".join(row.published.tower for row in found)
        cells.append([title, f"`{found[0].family.example}`", towers, becomes(found[0])])
    return cells


def choices_table(rows: list[Row]) -> list[list[str]]:
    head = "model|`model_type`|patches of a token|frames of a patch|pictures|a patch sees|order|class token"
    cells = [[*head.split("|"), "questions share", "packing", "published with gaze"]]
    for row in rows:
        family = row.family
        whole, native = isinstance(family, AnySizeFamily), isinstance(family, NativeFamily)
        frames = family.tubelet if whole else 1
        prefix = 0 if whole else adapter_of(family.tower).prefix
        kind = (
            "whole, own shape, thumbnails"
            if whole
            else "squares, thumbnails"
            if family.keep_prefix
            else "squares, tiles, thumbnails"
        )
        cells.append(
            [
                row.published.name,
                f"`{family.model_type}`",
                str(family.projector.merge if native else family.group**2),
                str(frames),
                kind,
                "its own pair of frames" if frames > 1 else row.attention,
                "raster" if family.raster else "gaze",
                "kept" if family.keep_prefix else "dropped" if prefix else "none",
                "yes" if row.shares else "no",
                "yes" if family.packing else "no",
                "yes" if family.trained_gazed else "no",
            ]
        )
    return cells


def tokens_table(rows: list[Row]) -> list[list[str]]:
    head = "model|patches of a frame|dense tokens|gazed tokens at most|pixels, MiB|dense cache, MiB|gazed cache, MiB"
    return [
        head.split("|"),
        *(
            [
                row.published.name,
                f"{row.positions:,}",
                f"{row.dense:,}",
                f"{row.gazed:,}",
                f"{row.pixels / 2**20:.1f}",
                row.cache(row.dense),
                row.cache(row.gazed),
            ]
            for row in rows
        ),
    ]


def shapes_table(rows: list[Row]) -> list[list[str]]:
    """Qwen3-VL's finest scale, width x height, and places of all scales, for frames of several sizes."""
    family = next(row.family for row in rows if row.family.model_type == "qwen3_vl")
    tower = family.make_tower(RandomSelector.grid, scales=None, frame_independent=True, backend="sdpa", compile=False)
    most = (1, 4, 16)
    cells = [["frame", *(f"`max_tiles={tiles}`" for tiles in most), "dense tokens of a pair"]]
    for width, height in ((640, 360), (1280, 720), (1920, 1080), (1080, 1920), (3840, 2160)):
        grids = [tower.grid_for(width, height, family.default_settings().changed(max_tiles=tiles)) for tiles in most]
        shown = [f"{grid.scales[-1][1]} x {grid.scales[-1][0]}: {grid.size:,}" for grid in grids]
        cells.append([f"{width} x {height}", *shown, str(family.dense_count(2, (height, width)))])
    return cells


def markdown(cells: list[list[str]]) -> str:
    rule = ["---"] * len(cells[0])
    return "".join(f"| {' | '.join(row)} |\n" for row in (cells[0], rule, *cells[1:]))


def layouts(rows: list[Row]) -> str:
    """How each family writes a video of two pictures, of which the first keeps 30 patches and the second 20."""
    written = {row.family.model_type: row.written for row in rows}
    lines = "".join(f"{name:<16}  {text}\n" for name, text in written.items())
    return f"```text\n{lines}```\n"


TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "families": ("README.md", lambda rows: markdown(short_table(rows))),
    "family_choices": ("docs/families.md", lambda rows: markdown(choices_table(rows))),
    "family_layouts": ("docs/families.md", layouts),
    "family_tokens": ("docs/families.md", lambda rows: markdown(tokens_table(rows))),
    "qwen_shapes": ("docs/qwen.md", lambda rows: markdown(shapes_table(rows))),
}


def marked(name: str) -> re.Pattern[str]:
    """Where a table stands in its page: below its mark, up to the next empty line or the end of its block."""
    return re.compile(rf"(?<=<!-- table: {name} -->\n\n)(?:```text\n(?:[^`].*\n)*```\n|(?:\|.*\n)+)")


def write(page: Path, name: str, table: str) -> None:
    text, found = marked(name).subn(lambda _: table, page.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit(f"{page}: no table below <!-- table: {name} -->")
    page.write_text(text, encoding="utf-8")


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the pages instead of printing them")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    rows = [row_of(published) for published in PUBLISHED]
    for name, (page, make) in TABLES.items():
        if arguments.write:
            write(ROOT / page, name, make(rows))
        else:
            print(f"{name} ({page})\n\n{make(rows)}")


if __name__ == "__main__":
    sys.exit(main())
