"""Questions in text, answers in text: `ask`, `stream` and `chat` of a wrapped model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import torch

from ...common.errors import InputError
from ...common.pixels import PictureSource, pictures_in
from ...video.sources import videos_in
from ..call_state import Stats
from ..prompts.messages import messages_text
from ..prompts.prompt import checked_text, tags_in
from ..video_encoder import VideoSource
from .answers import Answer, TextStream
from .inputs import ModelInputs
from .options import check_options, options_of

if TYPE_CHECKING:
    from ..model import GazedModel


class Asking:
    """The half of a wrapped model that speaks."""

    @overload
    def ask(
        self,
        video: VideoSource | Sequence[VideoSource] | None,
        question: str,
        *,
        num_return_sequences: int,
        **options: Any,
    ) -> list[Answer]: ...

    @overload
    def ask(
        self,
        video: VideoSource | Sequence[VideoSource] | None,
        question: str,
        *,
        images: Sequence[PictureSource] | PictureSource = (),
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        max_new_tokens: int | None = None,
        progress: bool = False,
        **generation: Any,
    ) -> Answer: ...

    def ask(
        self,
        video: VideoSource | Sequence[VideoSource] | None,
        question: str,
        *,
        images: Sequence[PictureSource] | PictureSource = (),
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        max_new_tokens: int | None = None,
        progress: bool = False,
        **generation: Any,
    ) -> Answer | list[Answer]:
        """Answers a question about a video (or several, or only images). Tags may stand in the question; otherwise the
        media come before it. A tag that is meant as text is written `\\<video>`.

        start, end, fps: as of `Video`, of each video.
        generation: as for `generate`; greedy, and at most 64 new tokens, unless told otherwise.
        -> the answer, a string with `stats` of this call; a list of them with num_return_sequences.
        """
        sources = _asked_about(video, start, end, fps)
        inputs = self._question(sources, question, pictures_in(images), progress, max_new_tokens, generation)
        return self._answer(inputs, max_new_tokens, generation)

    def stream(
        self,
        video: VideoSource | Sequence[VideoSource] | None,
        question: str,
        *,
        images: Sequence[PictureSource] | PictureSource = (),
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        max_new_tokens: int | None = None,
        progress: bool = False,
        **generation: Any,
    ) -> TextStream:
        """As `ask`, and yields the answer piece by piece while it is written. The video is seen before this returns;
        the stream's `stats` are complete at its end."""
        if (generation.get("num_beams") or 1) > 1 or (generation.get("num_return_sequences") or 1) > 1:
            raise InputError("stream() writes one answer: no beams, no further sequences")
        if generation.get("streamer") is not None:
            raise InputError("stream() has a streamer of its own; give yours to ask() or generate()")
        sources = _asked_about(video, start, end, fps)
        inputs = self._question(sources, question, pictures_in(images), progress, max_new_tokens, generation)
        model = cast("GazedModel", self)
        options = options_of(max_new_tokens, generation)

        def write(streamer: Any, stopping_criteria: list[Any]) -> Stats:
            own = [*(options.pop("stopping_criteria", None) or []), *stopping_criteria]
            ids = model.generate(**inputs, **options, streamer=streamer, stopping_criteria=own)
            return {**model.stats, "new_tokens": int(ids.shape[1])}

        return TextStream(model.tokenizer, write)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_new_tokens: int | None = None,
        progress: bool = False,
        **generation: Any,
    ) -> Answer | list[Answer]:
        """Answers the last of several messages, in the format of transformers: role and content, which is text or a
        list of parts, {"type": "text", "text": ...}, {"type": "video", "video": ...} or {"type": "image", "image":
        ...}. Media may be whatever `ask` takes. Text is text: no tags are looked for in it.

        tools, chat_template_kwargs: for the model's chat template, which decides what roles there are. Answers as
        `ask` does.
        """
        check_options(cast("GazedModel", self), max_new_tokens, generation)
        inputs = self.prepare_chat(
            messages, tools=tools, chat_template_kwargs=chat_template_kwargs, reuse=True, progress=progress
        )
        return self._answer(inputs, max_new_tokens, generation)

    def prepare_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reuse: bool = False,
        progress: bool = False,
    ) -> ModelInputs:
        """As `prepare`, of messages as `chat` takes them."""
        model = cast("GazedModel", self)
        text, media = messages_text(messages, model.preprocessing, model.family, tools, chat_template_kwargs or {})
        videos, images = ([part.source for part in media if part.kind == kind] for kind in ("video", "image"))
        return model.prepare(text, videos, images, chat=False, reuse=reuse, progress=progress)

    def _question(
        self,
        sources: list[Any],
        question: str,
        images: list[Any],
        progress: bool,
        max_new_tokens: int | None,
        generation: Mapping[str, Any],
    ) -> ModelInputs:
        model = cast("GazedModel", self)
        if not checked_text(question, "the question").strip():
            raise InputError("the question has no text")
        check_options(model, max_new_tokens, generation)
        if not tags_in(question):
            after = model.family.after_media
            question = f"<video>{after}" * len(sources) + f"<image>{after}" * len(images) + question
        return model.prepare(question, sources, images, reuse=True, progress=progress)

    def _answer(
        self, inputs: ModelInputs, max_new_tokens: int | None, generation: Mapping[str, Any]
    ) -> Answer | list[Answer]:
        model = cast("GazedModel", self)
        ids = model.generate(**inputs, **options_of(max_new_tokens, generation))
        stats, tokenizer = model.stats, model.tokenizer
        stats["new_tokens"] = int(ids.shape[1])
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if len(texts) == 1 and generation.get("num_return_sequences") is None:
            return Answer(texts[0].strip(), stats)
        lengths = [_length(row, tokenizer) for row in ids]
        return [
            Answer(text.strip(), {**stats, "new_tokens": length}) for text, length in zip(texts, lengths, strict=True)
        ]


def _asked_about(video: Any, start: float | None, end: float | None, fps: float | None) -> list[Any]:
    """As `videos_in`. Raises InputError for a list of nothing, which is not what anybody meant to ask about."""
    if isinstance(video, (list, tuple)) and not video:
        raise InputError("an empty list of videos or frames was given: None asks without a video")
    return videos_in(video, start, end, fps)


def _length(row: torch.Tensor, tokenizer: Any) -> int:
    """New tokens of one answer of several, which are padded to the same length."""
    pad = tokenizer.pad_token_id
    if pad is None:
        return len(row)
    padding = int((row == pad).flip(0).long().cumprod(0).sum())
    ended = padding > 0 and pad == tokenizer.eos_token_id  # the first of them ends the answer
    return len(row) - padding + ended
