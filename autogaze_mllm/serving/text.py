"""From ids to text, piece by piece: what is sent early is what the whole answer begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a tokenizer shows of a character whose last bytes are still to come


class TextWriter:
    """The text of an answer whose ids come one by one. Blanks around it and special tokens are left out.

    stops: texts at which the answer ends; they and all that follows do not belong to it. stopped: one of them was
    written. text: all that was given so far.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self.text = ""
        self.stopped = False

    @property
    def tokens(self) -> int:
        return len(self._ids)

    def add(self, token: int) -> str:
        """What can be given after this id: no half of a character, no blank that may be the last, nothing that may
        turn out to be the beginning of a stop."""
        self._ids.append(token)
        whole = self._decoded()
        if not self.stopped:
            whole = whole.rstrip(UNFINISHED)
            whole = whole[: len(whole) - self._held_back(whole)]
        return self._given(whole.strip())

    def close(self) -> str:
        """What is left of it."""
        return self._given(self._decoded().strip())

    def _decoded(self) -> str:
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found = [offset for offset in (whole.find(stop) for stop in self._stops) if offset >= 0]
        if found:
            self.stopped = True
            whole = whole[: min(found)]
        return whole

    def _held_back(self, whole: str) -> int:
        """Characters at the end with which a stop may begin."""
        most = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(whole)), most, -1):
                if whole.endswith(stop[:length]):
                    most = length
                    break
        return most

    def _given(self, whole: str) -> str:
        """What is new in it; nothing where it does not go on from what was given."""
        if not whole.startswith(self.text):
            return ""
        piece, self.text = whole[len(self.text) :], whole
        return piece
