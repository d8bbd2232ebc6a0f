"""Answers in the form of OpenAI's chat completions, whole or as server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.storage.json_text import to_json
from .gateway import Piece
from .vision import Prompt

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    return f"data: {to_json(value)}\n\n".encode()


@dataclass
class Reply:
    """One answer under way. model: its name."""

    model: str
    prompt: Prompt
    choices: int
    usage_told: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    written: int = 0

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """All pieces in one."""
        texts, finish = [""] * self.choices, [""] * self.choices
        for piece in pieces:
            texts[piece.choice] += piece.text
            finish[piece.choice] = piece.finish or ""
            self.written += piece.tokens
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": finish[number],
            }
            for number, text in enumerate(texts)
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self._usage(),
            "gaze": self.prompt.gaze_facts,
        }

    def first(self) -> list[bytes]:
        """The events before the first word."""
        return [self._chunk(number, {"role": "assistant", "content": ""}) for number in range(self.choices)]

    def piece(self, piece: Piece) -> list[bytes]:
        self.written += piece.tokens
        events = [self._chunk(piece.choice, {"content": piece.text})] if piece.text else []
        if piece.finish:
            events.append(self._chunk(piece.choice, {}, piece.finish))
        return events

    def last(self) -> list[bytes]:
        if not self.usage_told:
            return [DONE]
        gaze_facts = {"choices": [], "usage": self._usage(), "gaze": self.prompt.gaze_facts}
        return [event({**self._head("chat.completion.chunk"), **gaze_facts}), DONE]

    def _chunk(self, number: int, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.usage_told else {}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, int]:
        read = self.prompt.tokens
        return {"prompt_tokens": read, "completion_tokens": self.written, "total_tokens": read + self.written}
