"""VILA-style folders (VILA-1.5, LongVILA, NVILA): config.json, and llm/, vision_tower/ and mm_projector/ beside it.

Each sub-folder is a checkpoint of its own, with its own config.json; llm/ holds the tokenizer, vision_tower/ the image
processor. The outer config.json says which layer of the tower is used and what stands around a video's frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.storage.files import find_file, read_json
from ...common.storage.json_text import parse_object
from .model import FEATURE_LAYER, NativeConfig, NativeModel
from .projectors import KINDS, Projector, build_projector

FOLDERS = ("llm", "vision_tower", "mm_projector")
# Besides the tokenizer's end of text, these end an answer.
TURN_ENDS = ("<|eot_id|>", "<|im_end|>")
TEXTS = {"start": None, "end": "\n", "sep": None}  # around a picture, unless config.json says otherwise


class VilaModel(NativeModel):
    model_type = "vila"
    CONFIGS = ("config.json", *(f"{folder}/config.json" for folder in FOLDERS))
    GENERATION = "llm/generation_config.json"
    LAYOUT = (
        ("vision_tower", "vision_tower", "vision_model."),
        ("mm_projector", "mm_projector", ""),
        ("llm", "llm", ""),
    )

    @staticmethod
    def recognises(source: str | Path, stored: Mapping[str, Any]) -> bool:
        """Whether this config.json, or what lies beside it, is that of a VILA-style folder."""
        named = {"llm_cfg", "vision_tower_cfg", "mm_projector_cfg"} <= stored.keys()
        return named or all((Path(source) / folder / "config.json").is_file() for folder in FOLDERS)

    @classmethod
    def read_config(cls, source: str | Path, files: dict[str, dict[str, Any]]) -> NativeConfig:
        stored = files["config.json"]
        kind = files["mm_projector/config.json"].get("mm_projector_type")
        if kind not in KINDS:
            raise InputError(f"{source}: projector type {kind!r} is not supported; supported: {', '.join(KINDS)}")
        select = stored.get("mm_vision_select_feature") or "cls_patch"
        if select not in ("cls_patch", "patch"):  # SigLIP has no class token: both mean all patches
            raise InputError(f"{source}: mm_vision_select_feature {select!r} is not cls_patch or patch")
        if stored.get("s2") and not stored.get("dynamic_s2"):
            raise InputError(f"{source}: its tower sees every picture at several sizes (s2), which cannot be gazed")
        layer = stored.get("mm_vision_select_layer")
        return NativeConfig(
            cls.model_type,
            source,
            files,
            text_config=dict(files["llm/config.json"]),
            vision_config=dict(files["vision_tower/config.json"]),
            mm_projector_type=kind,
            vision_feature_layer=FEATURE_LAYER if layer is None else layer,
            around_image=_surroundings(source, stored.get("image_encoder")),
            around_frame=_surroundings(source, stored.get("video_encoder")),
        )

    @classmethod
    def make_projector(cls, config: NativeConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> Projector:
        channels, width = config.vision_config.hidden_size, config.text_config.hidden_size
        kind = KINDS[config.mm_projector_type]  # type: ignore[attr-defined]
        return build_projector(kind, shapes, channels, width, source, merge=kind.window**2)

    @classmethod
    def read_generation(cls, source: str | Path, config: NativeConfig, **hub: Any) -> dict[str, Any]:
        """Also stops at the ends of a turn that the tokenizer knows; VILA infers these from the chat template."""
        stored = super().read_generation(source, config, **hub)
        path = find_file(source, "llm/tokenizer_config.json", required=False, **hub)
        added = read_json(path).get("added_tokens_decoder") or {} if path is not None else {}
        known = stored.get("eos_token_id", config.files["llm/config.json"].get("eos_token_id"))
        ends = [*known] if isinstance(known, list) else [] if known is None else [known]
        ends += [int(number) for number, token in added.items() if token.get("content") in TURN_ENDS]
        return {**stored, "eos_token_id": list(dict.fromkeys(ends))} if ends else stored


@dataclass(frozen=True)
class Surroundings:
    """Texts around the features of a dense picture, and how a dense video's features are averaged (frames, rows,
    columns); several pool sizes follow each other, each with `sep` after it."""

    start: str = ""
    end: str = "\n"
    sep: str = ""
    pool_sizes: tuple[tuple[int, int, int], ...] = ((1, 1, 1),)


def _surroundings(source: str | Path, stored: Any) -> Surroundings:
    """From image_encoder or video_encoder of config.json: absent, a dictionary, or one written as a string."""
    if stored is None:
        return Surroundings()
    try:
        facts = parse_object(stored, f"{source}: config.json") if isinstance(stored, str) else dict(stored)
        pools = tuple(tuple(int(side) for side in size) for size in facts.get("pool_sizes") or ((1, 1, 1),))
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: config.json: cannot read the encoder {stored!r} ({error})") from error
    if any(len(size) != 3 or min(size) < 1 for size in pools):
        raise InputError(f"{source}: config.json: pool_sizes {pools} are not triples of positive numbers")
    texts = {name: facts.get(f"{name}_tokens", default) or "" for name, default in TEXTS.items()}
    return Surroundings(**texts, pool_sizes=pools)  # type: ignore[arg-type]
