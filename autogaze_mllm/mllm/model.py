"""GazedModel: a base multimodal LLM with gaze in front of its tower.

Built around the base by composition: the gazed tower uses the base tower's layers, the projector and the LLM are the
base model's own, and nothing of the base is overwritten. `unwrap()` hands back exactly what came in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.compute.offloading import bring_back, present
from ..common.errors import InputError
from ..common.pixels import open_picture, pictures_in
from ..common.timing import Stopwatch
from ..gaze.cache import VideoCache
from ..gaze.gazed_video import GazedVideo
from ..gaze.selectors.base import AnySelector, as_selector
from ..gaze.settings import VideoSettings
from ..video import PYAV
from ..video.sources import VideoLike, videos_in
from ..video.torchcodec_reader import require_torchcodec
from ..vision.tower import GazedVisionModel
from .call_state import Stats, add_stats, gaze_off, gazes, keep_stats, latest_stats, new_stats
from .calls.asking import Asking
from .calls.inputs import MediaRows, ModelInputs, check_complete, check_media, stats_of
from .calls.options import decoding_options, options_explained
from .calls.pretrained_interface import IGNORED, PretrainedInterface, UnwrappedError
from .calls.splice import check_helpers, put_in, spliced
from .families import Family
from .media import Media
from .preprocessing import Preprocessing
from .prompts.prompt import check_counts, encode_prompt, media_per_prompt, pad_rows, prompts_in, render_chat, tags_in
from .prompts.prompt_cache import PromptPrefix, may_share
from .registry import forget
from .saving import save
from .video_encoder import CacheFacts, VideoEncoder, VideoSource

logger = logging.getLogger(__name__)


class GazedModel(Asking, PretrainedInterface, nn.Module):
    """Made by `autogaze_mllm.wrap`. `base` is what was wrapped.

    Threads may share it: what belongs to a call (`disabled`, `stats`) belongs to its thread.
    """

    _family: Family | None
    _tower: GazedVisionModel

    def __init__(
        self,
        family: Family,
        preprocessing: Preprocessing,
        gaze: AnySelector,
        tower: GazedVisionModel,
        settings: VideoSettings,
        cache: VideoCache | None = None,
        outer: nn.Module | None = None,
    ) -> None:
        """outer: what came in, where that is a PeftModel around the family's base."""
        super().__init__()
        self.base = family.base if outer is None else outer
        self.settings = settings
        # Kept out of the module tree: their parameters are the base's, which would otherwise be listed twice.
        object.__setattr__(self, "_family", family)
        object.__setattr__(self, "_tower", tower)
        self.preprocessing = preprocessing
        self.gaze = gaze
        self.cache = cache

    def __setattr__(self, name: str, value: Any) -> None:
        """A gaze model is a part of this module, another selector an attribute: one may take the other's place. What
        cannot work is refused here, not at the next video."""
        if name == "gaze":
            as_selector(value).check_grid(self.tower.grid)
            self._modules.pop(name, None)
        if name == "settings" and value.decoder != PYAV:
            require_torchcodec()
        super().__setattr__(name, value)

    # -- what the wrapped model is -------------------------------------------------------------------------------

    @property
    def family(self) -> Family:
        if self._family is None:
            raise UnwrappedError("this model was unwrapped: use the base model, or wrap it again")
        return self._family

    @property
    def tower(self) -> GazedVisionModel:
        """The base tower as it encodes gazed patches."""
        _ = self.family
        return self._tower

    @property
    def device(self) -> torch.device:
        """Where prompts are read; parts of the base may be elsewhere."""
        return self.family.device

    @property
    def dtype(self) -> torch.dtype:
        return self.family.base.dtype

    @property
    def tokenizer(self) -> Any:
        return self.preprocessing.tokenizer

    @property
    def stats(self) -> Stats:
        """Of the latest call of this thread. What calls return (answers, inputs) has the stats of its own call."""
        return latest_stats(self)

    @contextmanager
    def disabled(self) -> Iterator[GazedModel]:
        """Inside, the model is its dense base: `prepare`, `ask`, `forward` and `generate` take the base's own path. For
        calls of this thread (or asyncio task) alone."""
        with gaze_off(self):
            yield self

    def unwrap(self) -> nn.Module:
        """The base model, exactly as it came in. This wrapper cannot be used afterwards."""
        forget(self.family.base)
        base = self.base
        object.__setattr__(self, "_family", None)
        object.__setattr__(self, "_tower", None)
        del self.base
        return base

    # -- input ---------------------------------------------------------------------------------------------------

    def gaze_video(
        self,
        source: VideoLike,
        settings: VideoSettings | None = None,
        progress: bool = False,
        selector: AnySelector | None = None,
    ) -> GazedVideo:
        """Gazes a video once, for any number of questions: the result can stand wherever a path can.

        settings, selector: others than the model's own, for this once. stats["from_cache"]: it was in the cache.
        """
        return self._encoder(settings, selector).gaze(source, progress)

    @property
    def video_form(self) -> dict[str, Any]:
        """Options of `gaze_video` that give what the tower takes."""
        return self._encoder().form

    def gazed_media(self, gazed: GazedVideo) -> Media:
        """A gazed video as it stands in a prompt."""
        return self._encoder().gazed_media(gazed)

    def gazed_key(
        self, source: VideoLike, settings: VideoSettings | None = None, selector: AnySelector | None = None
    ) -> str | None:
        """What a video's kept patches are called in the cache; None where they cannot be cached."""
        return self._encoder(settings, selector).gazed_key(source)

    def cache_facts(self) -> CacheFacts:
        """What decides the kept patches of a video, and its visual tokens; None where they cannot be cached."""
        return self._encoder().cache_facts()

    def _encoder(
        self,
        settings: VideoSettings | None = None,
        selector: AnySelector | None = None,
        stats: Stats | None = None,
    ) -> VideoEncoder:
        """For one call, of what the model is now. stats: of that call, counted up."""
        if isinstance(self.gaze, nn.Module):  # small, and it reads its weights in ways of its own
            bring_back(self.gaze)
        return VideoEncoder(
            self.family,
            self.tower,
            selector or self.gaze,
            settings or self.settings,
            self.cache,
            gazes(self),
            new_stats() if stats is None else stats,
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
    ) -> ModelInputs:
        """Prompts with `<video>` and `<image>` tags -> input for `forward` and `generate`.

        One prompt: videos and images are lists in the order of the tags. Several: one such list per prompt. A video is
        what `Video` takes (a path, frames, ...), a `Video` or a GazedVideo; an image a path, an array, a PIL image, ...
        A tag that is meant as text is written with a backslash: `\\<image>`. chat: put the prompt into the model's chat
        format.
        reuse: take visual tokens from the cache and keep them there; they carry no gradients.
        -> input_ids, attention_mask (B, L) and media (per prompt, in order), which belong together.
        """
        single, texts = isinstance(prompts, str), prompts_in(prompts)
        video_lists = media_per_prompt(videos, videos_in, single, len(texts), "videos")
        image_lists = media_per_prompt(images, pictures_in, single, len(texts), "images")
        stats = keep_stats(self, new_stats())
        encoder = self._encoder(stats=stats)
        rows, media = [], MediaRows(stats=stats)
        for number, (text, prompt_videos, pictures) in enumerate(zip(texts, video_lists, image_lists, strict=True)):
            check_counts(text, len(prompt_videos), len(pictures), number)
            items, next_video, picture = [], iter(prompt_videos), iter(pictures)
            for kind in tags_in(text):
                if kind == "video":
                    items.append(encoder.media(next(next_video), reuse, progress))
                else:
                    items.append(self.family.dense_image(open_picture(next(picture)), alone=len(pictures) == 1))
            rendered = render_chat(text, self.preprocessing, self.family) if chat else text
            rows.append(encode_prompt(rendered, items, self.preprocessing, self.family, number))
            media.append(items)
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        stats["visual_tokens"] = sum(item.tokens for items in media for item in items)
        stats["prompt_tokens"] = sum(map(len, rows))
        limit = self.family.context_length
        if limit and max(map(len, rows)) > limit:
            logger.warning(
                "a prompt of %d tokens exceeds the %d that the LLM was made for: take fewer frames or a lower ratio",
                max(map(len, rows)),
                limit,
            )
        return ModelInputs({**pad_rows(rows, pad_id, padding_side, self.device), "media": media})

    @torch.no_grad()
    def encode_video(
        self,
        source: VideoSource,
        progress: bool = False,
        share_prompt: bool = False,
        settings: VideoSettings | None = None,
    ) -> Media:
        """Visual tokens of a video, for any number of questions: the result can stand wherever a path can.

        share_prompt: the LLM reads them at the first question only; its keys and values are kept with the result, and
        questions that begin alike go on from there. For models whose weights stay as they are. settings: others than
        the model's own, for this once.
        """
        if share_prompt and not self.family.share_prefix:
            raise InputError(
                f"{self.family.title} reads a video in the light of the question: what its LLM makes of it cannot be "
                "shared; leave share_prompt out"
            )
        encoder = self._encoder(settings, stats=keep_stats(self, new_stats()))
        item = encoder.media(source, True, progress)
        clock = Stopwatch(self.device)
        (tokens,) = encoder.features([item], clock)
        encoder.count({"visual_tokens": len(tokens), "seconds": clock.seconds})
        prefix = PromptPrefix() if share_prompt else None
        return Media(item.layout, tokens, item.token_map, prefix=prefix)

    # -- running -------------------------------------------------------------------------------------------------

    def embed(self, input_ids: torch.Tensor, media: Sequence[Sequence[Media]]) -> torch.Tensor:
        """Token embeddings (B, L, (1 + deepstack) * D) with the visual tokens of `media` in their places; what
        deepstack adds to the LLM's first layers follows on the channels, zeros elsewhere.

        Raises InputError when a prompt has more or fewer placeholders than its media give features.
        """
        return self._embed(input_ids, media, self._encoder())

    def _embed(self, input_ids: torch.Tensor, media: Sequence[Sequence[Media]], encoder: VideoEncoder) -> torch.Tensor:
        family = self.family
        visual = family.is_visual(input_ids)
        # A placeholder is replaced; in some models it lies beyond the embedding table.
        embedded = family.base.get_input_embeddings()(input_ids.masked_fill(visual, 0))
        if len(media) != len(input_ids):
            raise InputError(f"{len(input_ids)} prompts, but media for {len(media)}")
        clock = Stopwatch(self.device)
        features = encoder.features([item for items in media for item in items], clock)
        rest = iter(features)
        for row, items in enumerate(media):
            count, slots = sum(len(next(rest)) for _ in items), int(visual[row].sum())
            if count != slots:
                raise InputError(f"prompt {row}: {slots} visual placeholders, but its media give {count} features")
        encoder.count({"seconds": clock.seconds})
        return put_in(embedded, visual, features, family.deepstack)

    @contextmanager
    def base_inputs(
        self,
        input_ids: torch.Tensor | None,
        media: Sequence[Sequence[Media]] | None,
        kwargs: dict[str, Any],
        embedded: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        generating: bool = False,
        stats: Stats | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Inside, the base called with what is given sees the prompts with their media. embedded: what `embed` made of
        them, where that was called already. labels: which ids are learnt, where the base itself is not told. stats: of
        the call."""
        family = self.family
        labels = kwargs.get("labels") if labels is None else labels
        answers = None if labels is None else labels != IGNORED
        if media is None:
            check_complete(family, input_ids, kwargs, gazes(self), generating)
            yield kwargs if input_ids is None else {"input_ids": input_ids, **kwargs}
            return
        if input_ids is None:
            raise InputError("media need the input_ids that prepare() made for them")
        input_ids = input_ids.to(family.device)
        if embedded is None:
            dense_only = all(isinstance(item.content, dict) for items in media for item in items)
            inputs = family.dense_inputs(media) if dense_only and not gazes(self) else None
            if inputs is not None:
                inputs = {**family.token_types(input_ids, answers), **inputs, **kwargs}
                # transformers reads weights of this module by itself, which accelerate may keep elsewhere.
                with present(getattr(family.base, "model", family.base)):
                    yield {"input_ids": input_ids, **inputs}
                return
            embedded = self._embed(input_ids, media, self._encoder(stats=stats))
        own = family.llm_inputs(input_ids, kwargs.get("attention_mask"), media, answers)
        if generating:
            check_helpers(family, own, kwargs)
        with spliced(family, input_ids, embedded, {**own, **kwargs}, generating) as inputs:
            yield inputs

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        media: Sequence[Sequence[Media]] | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base model's forward, with `media` from `prepare`.

        Labels at visual placeholders and at padding never count: nobody wants a model that predicts placeholders.
        """
        check_media(media)
        if media is not None and labels is not None and input_ids is not None:
            given, labels = labels, self.learnt_labels(input_ids, attention_mask, labels)
            if kwargs.get("num_items_in_batch") is not None:  # a trainer's count of targets, by which it divides
                share = (labels[:, 1:] != IGNORED).sum() / (given[:, 1:] != IGNORED).sum().clamp(min=1)
                kwargs["num_items_in_batch"] = kwargs["num_items_in_batch"] * share
        named = {"attention_mask": attention_mask, "labels": labels}
        kwargs = {name: value for name, value in named.items() if value is not None} | kwargs
        stats = keep_stats(self, stats_of(media))
        with self.base_inputs(input_ids, media, kwargs, stats=stats) as inputs:
            return self.family.base(**inputs)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        media: Sequence[Sequence[Media]] | None = None,
        input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base model's generate. With media, only the new ids are returned (B, new). inputs: as input_ids."""
        input_ids = inputs if input_ids is None else input_ids
        stats, base = stats_of(media), self.family.base
        kwargs = decoding_options(kwargs, base, self.tokenizer, media)
        clock = Stopwatch(self.device)
        with ExitStack() as stack:
            prefix = media[0][0].prefix if media is not None and [len(items) for items in media] == [1] else None
            if input_ids is not None and prefix is not None and may_share(kwargs, base.generation_config):
                text_config = getattr(self.config, "text_config", self.config)
                kwargs = {**kwargs, "past_key_values": stack.enter_context(prefix.shared(input_ids, text_config))}
            ready = stack.enter_context(self.base_inputs(input_ids, media, kwargs, generating=True, stats=stats))
            with clock.stage("llm"), options_explained():
                output = base.generate(**ready)
        add_stats(stats, {"seconds": clock.seconds})
        keep_stats(self, stats)  # last of all: a streamer may have asked something else meanwhile
        if media is None or input_ids is None:
            return output
        if isinstance(output, torch.Tensor):
            return output[:, input_ids.shape[1] :]
        output.sequences = output.sequences[:, input_ids.shape[1] :]
        return output

    def save_pretrained(self, folder: str | Path, is_main_process: bool = True, **options: Any) -> None:
        """Writes base model, gaze model and settings; `autogaze_mllm.load` reads them back.

        is_main_process, options: as of transformers; a state_dict is one of this model.
        """
        if is_main_process:
            save(self, folder, options)
