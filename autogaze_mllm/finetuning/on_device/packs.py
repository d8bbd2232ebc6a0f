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


@dataclass(frozen=True)
class Pack:
    """ids, question, labels: (T,) tokens, the number of the question that each belongs to, and the token that is to
    follow where that is learnt."""

    ids: np.ndarray
    question: np.ndarray
    labels: np.ndarray
    kinds: tuple[str, ...] = ()


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
