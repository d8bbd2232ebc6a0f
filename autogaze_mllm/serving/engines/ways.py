"""Which families' visual tokens can be sent to an engine, and which way. Read off the adapters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ...mllm.families import OWN
from ...mllm.families.any_size.mrope import mrope_positions
from ...mllm.families.base import Family
from ...mllm.families.llava.llava import LlavaFamily

Way = Literal["prompt", "images"]


def refusal(family: type[Family], way: Way) -> str | None:
    """Why an engine cannot have a family's visual tokens this way; None where it can.

    "prompt": embeddings of the whole prompt, which the engine reads as text: one position after the other, and each
    token sees those before it. "images": text with a placeholder for each video, and its embeddings.
    """
    if way == "images":
        return None if issubclass(family, LlavaFamily) else "only LLaVA takes embeddings of an image of any length"
    if family.splice == "hook":
        return "its LLM is told which tokens are visual, and an engine is not"
    if family.llm_inputs is not Family.llm_inputs:
        positions = "positions in three directions (mRoPE)" if _has_mrope(family) else "positions of its own"
        return f"its LLM gives visual tokens {positions}, and an engine gives all embeddings those of text"
    if family.token_types is not Family.token_types:
        return "its LLM is told which tokens are visual, and an engine is not"
    return None


def _has_mrope(family: type[Family]) -> bool:
    """Whether it asks for such positions."""
    return mrope_positions.__name__ in family.llm_inputs.__code__.co_names


def rows(families: Iterable[type[Family]] = OWN) -> list[tuple[str, str, str]]:
    """Of a table: family, whether it can be sent as prompt embeddings, whether as image embeddings."""
    return [(one.title, refusal(one, "prompt") or "yes", refusal(one, "images") or "yes") for one in families]
