"""Options of generation: what cannot be is refused in one line, and as far as possible before a video is looked at."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import GenerationConfig, GenerationMixin

from ...common.errors import InputError, first_line, listed
from ...gaze.settings import VideoSettings
from .inputs import check_media

if TYPE_CHECKING:
    from ..model import GazedModel

MAX_NEW_TOKENS = 64
# Of `forward`, what says how it is run. All else there is made of the question and its video.
OF_FORWARD = {"logits_to_keep", "past_key_values", "use_cache"}
COUNTS = ("max_new_tokens", "num_beams", "num_return_sequences")
READING_IDS = ("prefill_chunk_size", "token_healing", "cache_implementation")
# Where transformers tells its users that options do not go together, or need something that is not there.
WHERE_OPTIONS_ARE_READ = ("transformers.generation", "transformers.cache_utils")


def options_of(max_new_tokens: int | None, generation: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` is called with. A generation config that is given says all that is not asked for."""
    said = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if generation.get("generation_config") is not None:
        return {**generation, **said}
    usual = {} if generation.get("max_length") is not None else {"max_new_tokens": MAX_NEW_TOKENS}
    return {"do_sample": False, **usual, **generation, **said}


def check_options(model: GazedModel, max_new_tokens: int | None, options: Mapping[str, Any]) -> None:
    """Raises InputError for what is no option of an answer; transformers says so only after the video was seen, and in
    its own words."""
    if options.get("return_dict_in_generate"):
        raise InputError("ask() returns text; use prepare() and generate() for return_dict_in_generate")
    base = model.family.base
    generating = inspect.signature(GenerationMixin.generate).parameters
    known = vars(GenerationConfig()).keys() | generating.keys() | OF_FORWARD | {"tokenizer", "assistant_tokenizer"}
    known -= {"self", "inputs", "kwargs"}
    unknown = sorted(set(options) - known)
    for name in unknown:
        if name in VideoSettings.__dataclass_fields__:
            told = "is no option of an answer but a setting of the video: give it to wrap() or load()"
            raise InputError(f"{name} {told}")
        if name == "inputs" or any(
            name in inspect.signature(part).parameters for part in (model.forward, base.forward)
        ):
            raise InputError(f"{name} is made of the question and its video: use generate() to give your own")
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no generation option is called {listed(unknown, 3)}{hint}")
    check_decoding(base, {**options, "max_new_tokens": max_new_tokens}, media=True)


def decoding_options(options: dict[str, Any], base: Any, tokenizer: Any, media: Any) -> dict[str, Any]:
    """Of a call of `generate`, checked, and together with the model's own tokenizer where some of them look at text.
    media: as `generate` takes them."""
    check_media(media)
    check_decoding(base, options, media is not None)
    config = options.get("generation_config") or base.generation_config
    reads = options.get("stop_strings", getattr(config, "stop_strings", None))
    return {"tokenizer": tokenizer, **options} if reads else options


def check_decoding(base: Any, options: Mapping[str, Any], media: bool) -> None:
    """Raises InputError for ways of decoding that the base of a wrapped model cannot go. media: of a prompt that has
    some."""
    config = options.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise InputError(f"generation_config must be a GenerationConfig of transformers, got {type(config).__name__}")
    config = config or base.generation_config
    for name in COUNTS:
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    if isinstance(options.get("custom_generate"), str) or options.get("trust_remote_code"):
        raise InputError("code from a folder or from the Hub is never run: give custom_generate a function of your own")
    assistant = options.get("assistant_model")
    if assistant is not None and not (isinstance(assistant, nn.Module) and hasattr(assistant, "generation_config")):
        raise InputError(f"assistant_model must be a loaded model, got {type(assistant).__name__}")
    if hasattr(assistant, "gaze_video"):
        raise InputError(
            "an assistant_model reads ids alone: give its base, or a model of text, in place of a wrapped one"
        )
    if options.get("assistant_early_exit") is not None and not hasattr(base.config, "num_hidden_layers"):
        raise InputError("assistant_early_exit is for models of text alone: use prompt_lookup_num_tokens")
    for name in READING_IDS if media else ():
        value = options.get(name) or getattr(config, name, None)
        if value and (name != "cache_implementation" or value == "paged"):
            raise InputError(f"{name}={value!r} works on ids alone, and a video has none: leave it out")


@contextmanager
def options_explained() -> Iterator[None]:
    """Inside, what transformers says against options, or combinations of them, becomes an InputError."""
    try:
        yield
    except (ValueError, NotImplementedError, ImportError) as error:
        if isinstance(error, InputError) or not _module_of(error).startswith(WHERE_OPTIONS_ARE_READ):
            raise
        said = first_line(error)
        if "trust_remote_code" in said:  # strategies that transformers has moved to the Hub
            way = said.partition(" requires ")[0]
            said = f"{way} is code on the Hub by now, which is never run: decode in another way"
        raise InputError(f"transformers' generate: {said}") from error


def _module_of(error: BaseException) -> str:
    """Where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
