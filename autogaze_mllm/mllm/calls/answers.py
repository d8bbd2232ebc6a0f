"""What a question gives: an answer, or the text of one that is still being written."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import torch
from transformers import StoppingCriteria, TextStreamer

from ..call_state import Stats


class Answer(str):
    """The text of an answer. stats: what the call that gave it cost, and how many tokens it read and wrote."""

    stats: Stats

    def __new__(cls, text: str = "", stats: Stats | None = None) -> Answer:
        answer = super().__new__(cls, text)
        answer.stats = stats or {}
        return answer


class TextStream(Iterator[str]):
    """Pieces of an answer, as soon as they are written. stats: complete at the end; `text`: all that came so far.

    The model writes in a thread of its own, which stops at its next token when the stream is closed or forgotten.
    An error in there is raised here.
    """

    def __init__(self, tokenizer: Any, write: Callable[..., Stats]) -> None:
        """write: called with `streamer` and `stopping_criteria` for `generate`; gives the stats of the call."""
        self.stats: Stats = {}
        self.text = ""
        self._pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._stop = _Stop()
        pieces, stop = self._pieces, self._stop  # not self: a stream that nobody reads any more is to end
        streamer = _Pieces(tokenizer, pieces)
        stats = self.stats
        here = contextvars.copy_context()
        inside = autocast_here()

        def run() -> None:
            try:
                with inside():
                    stats.update(here.run(write, streamer=streamer, stopping_criteria=[stop]))
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        threading.Thread(target=run, name="autogaze-mllm stream", daemon=True).start()

    def __next__(self) -> str:
        while not self._stop.over:
            piece = self._pieces.get()
            if isinstance(piece, str):
                self.text += piece
                if piece:
                    return piece
                continue
            self._stop.over = True
            if piece is not None:
                raise piece
        raise StopIteration

    def close(self) -> None:
        """No more pieces are wanted."""
        self._stop.over = True

    def __del__(self) -> None:
        stop = getattr(self, "_stop", None)
        if stop is not None:
            stop.over = True


class _Stop(StoppingCriteria):
    """over: nobody reads any more."""

    def __init__(self) -> None:
        self.over = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.over, dtype=torch.bool, device=input_ids.device)


class _Pieces(TextStreamer):
    """Words as they are complete, without the prompt and special tokens."""

    def __init__(self, tokenizer: Any, pieces: SimpleQueue[Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._pieces = pieces

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._pieces.put(text)


def autocast_here() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """What gives another thread the autocast of this one, which torch keeps by thread."""
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    autocasts = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]

    def enter() -> contextlib.AbstractContextManager[Any]:
        stack = contextlib.ExitStack()
        for kind, dtype in autocasts:
            stack.enter_context(torch.autocast(kind, dtype))
        return stack

    return enter
