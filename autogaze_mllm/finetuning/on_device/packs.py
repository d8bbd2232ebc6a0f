"""Questions and answers about one video as tokens, one after the other in a row, and batches of such rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100  # as cross-entropy has it
NO_QUESTION = -1


@dataclass(frozen=True)
class Turns:
    """How a conversation is written. before: the text up to a video; after: from a question's end to where its answer
    begins; end: what ends an answer. join: between a video and a question."""

    encode: Callable[[str], list[int]]
    before: str
    join: str
    after: str
    end: str

    def prefix(self, text: str = "") -> list[int]:
        """What stands before a question: the start, and the text in place of a video."""
        return self.encode(self.before + text)

    def pack(self, turns: Sequence[tuple[str, str]], kinds: Sequence[str] = ()) -> Pack:
        """turns: questions with their answers. kinds: of the questions, for reports."""
        ids: list[int] = []
        question: list[int] = []
        labels: list[int] = []
        for number, (asked, answer) in enumerate(turns):
            # Apart: where an answer begins, nothing that comes later decides how the prompt is cut into tokens.
            prompt = self.encode(self.join + asked + self.after)
            said = self.encode(answer + self.end)
            ids += prompt + said
            question += [number] * (len(prompt) + len(said))
            labels += [IGNORED] * (len(prompt) - 1) + said + [IGNORED]
        ids_, question_, labels_ = (np.array(values, dtype=np.int32) for values in (ids, question, labels))
        return Pack(ids_, question_, labels_, tuple(kinds))

    def choosing(self, said: Sequence[str], letters: Sequence[str]) -> Pack:
        """Replies that stand side by side after one question, of which nothing but the letter is learnt. said: what
        each says before its letter, which follows in brackets."""
        rows = [self.encode(f"{words} (") for words in said]
        chosen = [self.encode(f"({letter}")[-1] for letter in letters]
        labels = [[IGNORED] * (len(row) - 1) + [letter] for row, letter in zip(rows, chosen, strict=True)]
        question = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
        ids_, labels_ = (np.concatenate(part).astype(np.int32) for part in (rows, labels))
        return Pack(ids_, question, labels_)

    def deciding(self, said: str) -> Pack:
        """Codes after a video, with + or - behind each: of `said`, nothing but these is learnt."""
        ids = self.encode(self.join + self.after + said)
        marks = {self.encode(f"K7{mark}")[-1] for mark in "+-"}
        labels = [token if token in marks else IGNORED for token in ids[1:]] + [IGNORED]
        ids_, labels_ = (np.array(values, dtype=np.int32) for values in (ids, labels))
        return Pack(ids_, np.zeros(len(ids), dtype=np.int32), labels_)


@dataclass(frozen=True)
class Pack:
    """ids, question, labels: (T,) tokens, the number of the question that each belongs to, and the token that is to
    follow where that is learnt."""

    ids: np.ndarray
    question: np.ndarray
    labels: np.ndarray
    kinds: tuple[str, ...] = ()

    def and_then(self, other: Pack) -> Pack:
        """The questions of the other one as well, which is of the same video."""
        question = np.concatenate([self.question, other.question + self.question.max() + 1])
        ids, labels = np.concatenate([self.ids, other.ids]), np.concatenate([self.labels, other.labels])
        return Pack(ids, question, labels, self.kinds + other.kinds)


@dataclass(frozen=True)
class Rows:
    """Packs side by side: (B, T) each."""

    ids: torch.Tensor
    question: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, packs: Sequence[Pack], device: torch.device) -> Rows:
        return cls(
            filled([pack.ids for pack in packs], 0, device)[0],
            filled([pack.question for pack in packs], NO_QUESTION, device)[0],
            filled([pack.labels for pack in packs], IGNORED, device)[0],
        )


def filled(
    rows: Sequence[np.ndarray | Sequence[int]], value: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of any length -> (B, longest), filled up with `value` on the right, and their lengths (B,)."""
    lengths = [len(row) for row in rows]
    table = np.full((len(rows), max(lengths)), value, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table).to(device), torch.tensor(lengths, device=device)
