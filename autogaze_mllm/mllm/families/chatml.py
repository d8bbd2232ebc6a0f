"""ChatML, which several families' LLMs were trained with."""

from __future__ import annotations


def chatml(text: str, first: bool = True) -> str:
    """A question as Qwen2 was trained to read it in NVILA."""
    before = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n" if first else "\n"
    return f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
