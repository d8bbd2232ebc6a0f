"""Visual tokens into a base model's LLM, for the length of one call.

Most bases take embeddings of the whole prompt. Where `generate` refuses these, or where visual tokens are more than
embeddings (deepstack), a forward pre-hook on the LLM puts them in; it is removed with the call, and it acts on calls of
its own thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from ...common.errors import InputError
from ..families import Family


def put_in(
    embedded: torch.Tensor, visual: torch.Tensor, features: Sequence[torch.Tensor], deepstack: int
) -> torch.Tensor:
    """Embeddings (B, L, D) with features, (n, (1 + deepstack) * D) each, in the places `visual` (B, L), one after the
    other -> (B, L, (1 + deepstack) * D), zeros after the first D elsewhere."""
    if deepstack:
        embedded = F.pad(embedded, (0, deepstack * embedded.shape[-1]))
    if not features:
        return embedded
    joined = torch.cat([tokens.to(embedded.device, embedded.dtype) for tokens in features])
    return embedded.masked_scatter(visual[..., None], joined)


@contextmanager
def spliced(
    family: Family, input_ids: torch.Tensor, embedded: torch.Tensor, own: dict[str, Any], generating: bool
) -> Iterator[dict[str, Any]]:
    """Inside, the base called with what is given reads `embedded` in place of the prompt's own embeddings.

    embedded: (B, L, (1 + deepstack) * D), zeros after the first D where no visual token stands. own: what else the LLM
    takes. generating: the call is `generate`, which then also sees ids, for options that look at the prompt.
    """
    width = embedded.shape[-1] // (1 + family.deepstack)
    inputs = dict(own)
    by_hook = family.splice == "hook" or (generating and guesses(family, own))
    if not by_hook:
        inputs["inputs_embeds"] = embedded[..., :width]
    if by_hook or generating:
        inputs["input_ids"] = _within_table(family, input_ids)
    if not by_hook and not family.deepstack:
        yield inputs
        return
    feed = _Feed(input_ids, embedded, family.is_visual(input_ids), width)
    with ExitStack() as stack:
        stack.callback(family.base.get_input_embeddings().register_forward_pre_hook(feed.note).remove)
        stack.callback(family.language_model.register_forward_pre_hook(feed, with_kwargs=True).remove)
        yield inputs


def guesses(family: Family, options: dict[str, Any]) -> bool:
    """Whether `generate` is asked to decode with an assistant: it reads guessed tokens together with the prompt, of
    which transformers forgets the embeddings then."""
    config = options.get("generation_config") or family.base.generation_config
    named = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
    return any((options[name] if name in options else getattr(config, name, None)) is not None for name in named)


def check_helpers(family: Family, own: dict[str, Any], options: dict[str, Any]) -> None:
    """Raises InputError for what `generate` does with a second prompt or a second model, where the LLM takes more than
    ids: transformers hands that on to them, whom it does not fit. own: what the LLM takes beside ids."""
    extra = [name for name, value in own.items() if value is not None and name != "attention_mask"]
    if extra and options.get("assistant_model") is not None:
        raise InputError(
            f"{family.title} gives its LLM {extra[0]}, which transformers hands on to an assistant_model that knows "
            "nothing of it: use prompt_lookup_num_tokens"
        )
    if "position_ids" in extra and options.get("guidance_scale") not in (None, 1):
        raise InputError(f"{family.title} has positions of its own, which transformers' guidance_scale does not know")


def _within_table(family: Family, input_ids: torch.Tensor) -> torch.Tensor:
    """The ids as options like repetition_penalty may look at them, none beyond the embedding table: such placeholders
    are written as the prompt's first word, which counts as read anyhow, or as padding where the base itself would embed
    them so."""
    known = input_ids < family.base.get_input_embeddings().weight.shape[0]
    if bool(known.all()):
        return input_ids
    if family.splice == "hook":
        padding = family.base.config.get_text_config().pad_token_id
        return input_ids.masked_fill(~known, padding or 0)
    first = input_ids.gather(1, known.long().argmax(dim=1, keepdim=True))
    return torch.where(known, input_ids, first)


class _Feed:
    """The hook: embeddings and deepstack vectors of a prompt, whenever the LLM reads its end."""

    def __init__(self, prompt: torch.Tensor, embedded: torch.Tensor, visual: torch.Tensor, width: int) -> None:
        self.prompt, self.embedded, self.visual, self.width = prompt, embedded, visual, width
        self.thread = threading.get_ident()
        self.noted: torch.Tensor | None = None

    def note(self, module: Any, args: tuple[Any, ...]) -> None:
        """Another hook, on the table of embeddings: rows of ids that are looked up there are read by the LLM next. What
        is no rows is looked up for something else: transformers finds placeholders among embeddings by one of them."""
        if threading.get_ident() == self.thread and args and args[0].dim() == 2:
            self.noted = args[0]

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
        given = ids if found is None else found
        if given is None or threading.get_ident() != self.thread:
            return None
        past, length = kwargs.get("past_key_values"), self.embedded.shape[1]
        start = 0 if past is None else int(past.get_seq_length())
        noted, self.noted = ids if found is None else self.noted, None
        if start >= length or start + given.shape[1] < length or not self._is_prompt(noted, start):
            return None  # a token after the prompt, or another prompt (that of classifier-free guidance, say)
        if found is None:  # an LLM with its own embeddings
            found = module.get_input_embeddings()(ids)
            kwargs = {**kwargs, "input_ids": None}
        copies = found.shape[0] // self.embedded.shape[0]  # beams, or several answers to each prompt
        part = self.embedded[:, start:].repeat_interleave(copies, dim=0)
        visual = self.visual[:, start:].repeat_interleave(copies, dim=0)
        read = part.shape[1]  # assisted generation reads guessed tokens after the prompt
        tokens = part[..., : self.width].to(found.device, found.dtype)
        kwargs = {**kwargs, "inputs_embeds": torch.cat([tokens, found[:, read:]], dim=1)}
        if part.shape[-1] > self.width:
            deep = part[visual].to(found.device, found.dtype)[:, self.width :]
            kwargs["deepstack_visual_embeds"] = [layer.contiguous() for layer in deep.split(self.width, dim=-1)]
            kwargs["visual_pos_masks"] = torch.nn.functional.pad(visual, (0, found.shape[1] - read))
        return args, kwargs

    def _is_prompt(self, ids: torch.Tensor | None, start: int) -> bool:
        """Whether ids begin with the words of the prompt from `start` on; where none were looked up, embeddings of the
        prompt were given."""
        if ids is None:
            return True
        copies = ids.shape[0] // self.prompt.shape[0]
        prompt, visual = (part[:, start:].repeat_interleave(copies, dim=0) for part in (self.prompt, self.visual))
        begin = ids[:, : prompt.shape[1]].to(prompt.device)
        return begin.shape == prompt.shape and bool(((begin == prompt) | visual).all())
