"""GazedModel: a base multimodal LLM with gaze in front of its tower.

Built around the base by composition: the gazed tower uses the base tower's layers, the projector and the LLM are the
base model's own, and nothing of the base is overwritten. `unwrap()` hands back exactly what came in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.errors import InputError
from ..common.timing import Stopwatch
from ..gaze.cache import VideoCache
from ..gaze.gazed_video import GazedVideo
from ..gaze.selectors.base import AnySelector, as_selector
from ..gaze.settings import VideoSettings
from ..vision.tower import GazedSiglipVisionModel
from .families import Family
from .media import Media
from .preprocessing import Preprocessing
from .prompt import (
    ImageSource,
    check_counts,
    encode_prompt,
    media_per_prompt,
    open_image,
    pad_rows,
    render_chat,
    tags_in,
)
from .prompt_cache import OWN_CACHE, PromptPrefix
from .registry import forget
from .saving import save
from .video_encoder import VideoEncoder, VideoSource

logger = logging.getLogger(__name__)

DENSE_INPUTS = ("pixel_values", "pixel_values_videos")
RUN_STAGES = ("tower", "projector", "dense vision", "llm")  # measured anew at every forward or generate


UNWRAPPED = "this model was unwrapped: use the base model, or wrap it again"


class UnwrappedError(InputError, AttributeError):
    """Also an AttributeError, for what asks whether a model has a base."""


class GazedModel(nn.Module):
    """Made by `autogaze_mllm.wrap`. `base` is the wrapped model; `stats` describes the last call."""

    _family: Family | None
    _tower: GazedSiglipVisionModel

    def __init__(
        self,
        family: Family,
        preprocessing: Preprocessing,
        gaze: AnySelector,
        tower: GazedSiglipVisionModel,
        settings: VideoSettings,
        cache: VideoCache | None = None,
    ) -> None:
        super().__init__()
        self.base = family.base
        self.settings = settings
        self.stats: dict[str, Any] = {}
        self._gazing = True
        # Kept out of the module tree: their parameters are the base's, which would otherwise be listed twice.
        object.__setattr__(self, "_family", family)
        object.__setattr__(self, "_tower", tower)
        self.preprocessing = preprocessing
        self.gaze = gaze
        self.cache = cache

    def __setattr__(self, name: str, value: Any) -> None:
        """A gaze model is a part of this module, another selector an attribute: one may take the other's place."""
        if name == "gaze":
            as_selector(value).check_grid(self.tower.grid)  # refused here, not at the next video
            self._modules.pop(name, None)
        super().__setattr__(name, value)

    # -- what the wrapped model is -------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        if self._family is None:
            raise UnwrappedError(UNWRAPPED)
        return self._family

    @property
    def tower(self) -> GazedSiglipVisionModel:
        """The base tower as it encodes gazed patches."""
        _ = self.family
        return self._tower

    @property
    def config(self) -> Any:
        return self.family.config

    @property
    def device(self) -> torch.device:
        return self.family.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.family.base.dtype

    @property
    def tokenizer(self) -> Any:
        return self.preprocessing.tokenizer

    @contextmanager
    def disabled(self) -> Iterator[GazedModel]:
        """Inside, the model is its dense base: `prepare`, `ask`, `forward` and `generate` take the base's own path."""
        before, self._gazing = self._gazing, False
        try:
            yield self
        finally:
            self._gazing = before

    def unwrap(self) -> nn.Module:
        """The base model, exactly as it came in. This wrapper cannot be used afterwards."""
        base = self.family.base
        forget(base)
        object.__setattr__(self, "_family", None)
        object.__setattr__(self, "_tower", None)
        del self.base
        return base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.__dict__.get("_family", self) is None:
                raise UnwrappedError(UNWRAPPED) from None
            raise

    # -- input ---------------------------------------------------------------------------------------------------

    def gaze_video(
        self,
        source: str | Path,
        settings: VideoSettings | None = None,
        progress: bool = False,
        selector: AnySelector | None = None,
    ) -> GazedVideo:
        """Gazes a video once, for any number of questions: the result can stand wherever a path can.

        settings, selector: others than the model's own, for this once.
        Taken from the cache if it is there; stats["from_cache"] says so.
        """
        return self._encoder(settings, selector).gaze(source, progress)

    def gazed_key(
        self, source: str | Path, settings: VideoSettings | None = None, selector: AnySelector | None = None
    ) -> str | None:
        """What a video's kept patches are called in the cache; None where they cannot be cached."""
        return self._encoder(settings, selector).gazed_key(source)

    def _encoder(self, settings: VideoSettings | None = None, selector: AnySelector | None = None) -> VideoEncoder:
        """For this call, whose stats it counts up."""
        return VideoEncoder(
            self.family,
            self.tower,
            selector or self.gaze,
            settings or self.settings,
            self.cache,
            self._gazing,
            self.stats,
        )

    def prepare(
        self,
        prompts: str | Sequence[str],
        videos: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        *,
        chat: bool = True,
        padding_side: str = "left",
        reuse: bool = False,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Prompts with `<video>` and `<image>` tags -> input for `forward` and `generate`.

        One prompt: videos and images are lists in the order of the tags. Several: one such list per prompt. A video is
        a path or a GazedVideo, an image a path or a PIL image. chat: put the prompt into the model's chat format.
        reuse: take visual tokens from the cache and keep them there; they carry no gradients.
        -> input_ids, attention_mask (B, L) and media (per prompt, in order).
        """
        single = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise InputError("no prompt was given")
        film_lists = media_per_prompt(videos, single, len(texts), "videos")
        image_lists = media_per_prompt(images, single, len(texts), "images")
        self.stats = {"seconds": {}}
        encoder = self._encoder()
        rows, media = [], []
        for number, (text, films, pictures) in enumerate(zip(texts, film_lists, image_lists, strict=True)):
            check_counts(text, len(films), len(pictures), number)
            items, film, picture = [], iter(films), iter(pictures)
            for kind in tags_in(text):
                if kind == "video":
                    items.append(encoder.media(next(film), reuse, progress))
                else:
                    items.append(self.family.dense_image(open_image(next(picture)), alone=len(pictures) == 1))
            rendered = render_chat(text, self.preprocessing, self.family) if chat else text
            rows.append(encode_prompt(rendered, items, self.preprocessing, self.family, number))
            media.append(items)
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        self.stats["visual_tokens"] = sum(item.tokens for items in media for item in items)
        self.stats["prompt_tokens"] = sum(map(len, rows))
        limit = self.family.context_length
        if limit and max(map(len, rows)) > limit:
            logger.warning(
                "a prompt of %d tokens exceeds the %d that the LLM was made for: take fewer frames or a lower ratio",
                max(map(len, rows)),
                limit,
            )
        return {**pad_rows(rows, pad_id, padding_side, self.device), "media": media}

    @torch.no_grad()
    def encode_video(self, source: VideoSource, progress: bool = False, share_prompt: bool = False) -> Media:
        """Visual tokens of a video, for any number of questions: the result can stand wherever a path can.

        share_prompt: the LLM reads them at the first question only; its keys and values are kept with the result, and
        questions that begin alike go on from there. For models whose weights stay as they are.
        """
        self.stats = {"seconds": {}}
        encoder = self._encoder()
        item = encoder.media(source, True, progress)
        clock = Stopwatch(self.device)
        (tokens,) = encoder.features([item], clock)
        encoder.count({"visual_tokens": len(tokens), "seconds": clock.seconds})
        return Media(len(tokens), tokens, prefix=PromptPrefix() if share_prompt else None)

    # -- running -------------------------------------------------------------------------------------------------

    def embed(self, input_ids: torch.Tensor, media: Sequence[Sequence[Media]]) -> torch.Tensor:
        """Token embeddings (B, L, D) with the visual tokens of `media` in their places.

        Raises InputError when a prompt has more or fewer placeholders than its media give features.
        """
        family = self.family
        visual = (input_ids == family.image_token_id) | (input_ids == family.video_token_id)
        # A placeholder is replaced; in some models it lies beyond the embedding table.
        embedded = family.base.get_input_embeddings()(input_ids.masked_fill(visual, 0))
        if len(media) != len(input_ids):
            raise InputError(f"{len(input_ids)} prompts, but media for {len(media)}")
        clock = Stopwatch(self.device)
        features = self._encoder().features([item for items in media for item in items], clock)
        rest = iter(features)
        for row, items in enumerate(media):
            count, places = sum(len(next(rest)) for _ in items), int(visual[row].sum())
            if count != places:
                raise InputError(f"prompt {row}: {places} visual placeholders, but its media give {count} features")
        earlier = {stage: spent for stage, spent in self.stats.get("seconds", {}).items() if stage not in RUN_STAGES}
        self.stats["seconds"] = {**earlier, **clock.seconds}
        if not features:
            return embedded
        joined = torch.cat(features).to(embedded.device, embedded.dtype)
        return embedded.masked_scatter(visual[..., None], joined)

    def _base_inputs(self, input_ids: torch.Tensor | None, media: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the base model: embeddings where there are media, otherwise what was given."""
        family = self.family
        if media is None:
            dense = [name for name in DENSE_INPUTS if kwargs.get(name) is not None]
            if dense and self._gazing:
                raise InputError(
                    f"{dense[0]} would bypass gaze: use prepare(), or `with model.disabled()` for the dense base"
                )
            return kwargs if input_ids is None else {"input_ids": input_ids, **kwargs}
        if input_ids is None:
            raise InputError("media need the input_ids that prepare() made for them")
        return {"inputs_embeds": self.embed(input_ids.to(family.base.device), media), **kwargs}

    def forward(
        self, input_ids: torch.Tensor | None = None, media: Sequence[Sequence[Media]] | None = None, **kwargs: Any
    ) -> Any:
        """As the base model's forward (labels, attention_mask, ...), with `media` from `prepare`.

        Labels at visual placeholders and at padding never count: nobody wants a model that predicts placeholders.
        """
        if media is not None and kwargs.get("labels") is not None and input_ids is not None:
            family, mask = self.family, kwargs.get("attention_mask")
            ignored = (input_ids == family.image_token_id) | (input_ids == family.video_token_id)
            ignored = ignored if mask is None else ignored | (mask == 0)
            kwargs["labels"] = kwargs["labels"].masked_fill(ignored, -100)
        return self.family.base(**self._base_inputs(input_ids, media, kwargs))

    @torch.no_grad()
    def generate(
        self, input_ids: torch.Tensor | None = None, media: Sequence[Sequence[Media]] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """As the base model's generate. With media, only the new ids are returned (B, new)."""
        if media is None:
            self.stats = {"seconds": {}}
        inputs = self._base_inputs(input_ids, media, kwargs)
        alone = media[0][0] if media is not None and [len(items) for items in media] == [1] else None
        wants_own = any(kwargs.get(name) is not None for name in OWN_CACHE)
        if input_ids is not None and alone is not None and alone.prefix is not None and not wants_own:
            inputs["past_key_values"] = alone.prefix.shared(input_ids, getattr(self.config, "text_config", self.config))
        clock = Stopwatch(self.device)
        with clock.stage("llm"):
            output = self.family.base.generate(**inputs)
        self.stats["seconds"] |= clock.seconds
        return output

    def ask(
        self,
        video: VideoSource | Sequence[VideoSource] | None,
        question: str,
        *,
        images: Sequence[ImageSource] = (),
        max_new_tokens: int = 64,
        progress: bool = False,
        **generation: Any,
    ) -> str:
        """Answers a question about a video (or several, or only images). Tags may stand in the question; otherwise the
        media come before it. generation: as for `generate`; greedy unless told otherwise."""
        films = [] if video is None else list(video) if isinstance(video, (list, tuple)) else [video]
        if not question.strip():
            raise InputError("the question has no text")
        if not tags_in(question):
            after = self.family.after_media
            question = f"<video>{after}" * len(films) + f"<image>{after}" * len(images) + question
        if generation.get("return_dict_in_generate"):
            raise InputError("ask() returns text; use prepare() and generate() for return_dict_in_generate")
        inputs = self.prepare(question, films, list(images), reuse=True, progress=progress)
        ids = self.generate(**inputs, max_new_tokens=max_new_tokens, **{"do_sample": False, **generation})
        self.stats["new_tokens"] = int(ids.shape[1])
        return self.tokenizer.decode(ids[0], skip_special_tokens=True).strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes base model, gaze model and settings; `autogaze_mllm.load` reads them back."""
        save(self, folder)
