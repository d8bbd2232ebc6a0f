"""Llama tokenizers that are kept as a sentencepiece model only, as in VILA-1.5.

transformers reads these with protobuf, which nothing else here needs. sentencepiece itself tells all that is wanted:
the pieces and their scores, from which the merges of a byte-pair encoding follow.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from ...common.errors import InputError
from ...common.storage.files import find_file, read_json

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_llama_tokenizer(source: str | Path, folder: str = "", **hub: Any) -> Any:
    """The tokenizer, or None when this is not one (another class, or there is a tokenizer.json)."""
    prefix = f"{folder}/" if folder else ""
    config = find_file(source, prefix + BESIDE[0], required=False, **hub)
    stored = read_json(config) if config is not None else {}
    if not str(stored.get("tokenizer_class", "")).startswith("LlamaTokenizer"):
        return None
    if find_file(source, f"{prefix}tokenizer.json", required=False, **hub) is not None:
        return None
    path = find_file(source, f"{prefix}tokenizer.model", required=False, **hub)
    if path is None:
        return None
    tokenizer = _byte_pairs(path, stored)
    with tempfile.TemporaryDirectory() as work:  # transformers adds what the other files say
        tokenizer.save(str(Path(work) / "tokenizer.json"))
        for name in BESIDE:
            found = find_file(source, prefix + name, required=False, **hub)
            if found is not None:
                shutil.copy(found, Path(work) / name)
        return AutoTokenizer.from_pretrained(work, trust_remote_code=False)


def _byte_pairs(path: Path, stored: dict[str, Any]) -> Tokenizer:
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a sentencepiece model ({error})") from error
    vocabulary = {model.id_to_piece(number): number for number in range(len(model))}
    merges = []
    for piece, number in vocabulary.items():
        if model.is_byte(number) or model.is_control(number) or model.is_unknown(number):
            continue
        for cut in range(1, len(piece)):
            left, right = vocabulary.get(piece[:cut]), vocabulary.get(piece[cut:])
            if left is not None and right is not None:
                # A higher score is merged earlier; among the ways to build a piece, earlier pieces come first.
                merges.append((-model.get_score(number), left, right, piece[:cut], piece[cut:]))
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    unknown, start = model.id_to_piece(model.unk_id()), model.id_to_piece(model.bos_id())
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    if stored.get("add_bos_token", True):
        tokenizer.post_processor = TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, model.bos_id())]
        )
    return tokenizer
