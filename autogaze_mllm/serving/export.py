"""The LLM of a model as a checkpoint of its own, as engines serve it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..common.errors import InputError
from ..common.storage.files import atomic_folder
from ..mllm.model import GazedModel
from .engines.ways import refusal


def export_llm(model: GazedModel, target: str | Path) -> Path:
    """Writes LLM, tokenizer, chat template and generation config. Raises InputError for a family whose LLM engines
    cannot run on our visual tokens, and for a folder that is not empty."""
    family = model.family
    why = refusal(type(family), "prompt")
    if why is not None:
        raise InputError(f"{family.title}: its LLM would be of no use to an engine: {why}")
    if any(".lora_" in name for name, _ in family.base.named_parameters()):
        raise InputError("this model holds LoRA: merge it first (`autogaze-mllm merge`)")
    target = Path(target)
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: is not empty; give the LLM a folder of its own")
    llm = causal_llm(model)
    with atomic_folder(target) as folder:
        llm.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder, chat_template=model.preprocessing.chat_template)
    return target


def causal_llm(model: GazedModel) -> Any:
    """The LLM with its head, as transformers has it for text alone. It shares the model's weights."""
    family = model.family
    llm = family.language_model
    if isinstance(llm, PreTrainedModel) and llm.get_output_embeddings() is not None:
        return llm
    config = family.config.get_text_config()
    with init_empty_weights(include_buffers=False):
        whole = AutoModelForCausalLM.from_config(config, dtype=family.base.dtype)
    inner = whole.base_model
    if type(inner) is not type(llm):
        raise InputError(f"{family.title}: its LLM is a {type(llm).__name__}, and transformers has no such LLM of text")
    setattr(whole, whole.base_model_prefix, llm)
    head = family.base.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise InputError(f"{family.title}: its LLM has no head")
    whole.set_output_embeddings(head)
    return whole.eval()
