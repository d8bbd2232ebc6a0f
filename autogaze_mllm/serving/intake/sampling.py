"""How an answer is written, as a request says it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from ...common.errors import InputError
from ...common.fields import Number, setting, settings

MOST_STOPS, LONGEST_STOP = 16, 256  # strings, and characters of each


def _as_texts(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@settings()
class Sampling:
    """The fields of a chat request that decide how an answer is written."""

    max_tokens: int | None = setting(
        "tokens of an answer at most; `max_completion_tokens` is the same",
        default=None,
        usual="default: the server's --max-tokens",
        at_least=1,
        flag="",
    )
    temperature: Number | None = setting(
        "0: the likeliest word always; higher: more chance",
        default=None,
        usual="default: 0; 1 where `top_p`, `seed` or `n` above 1 is given",
        at_least=0,
        at_most=2,
        flag="",
    )
    top_p: Number = setting(
        "only the likeliest words that together have this probability", default=1, above=0, at_most=1, flag=""
    )
    seed: int | None = setting(
        "the same seed gives the same answer",
        default=None,
        usual="default: another one every time",
        at_least=-(2**63),
        flag="",
    )
    n: int = setting("answers to the question", default=1, at_least=1, flag="")
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_texts)] = ()

    def __post_init__(self) -> None:
        if len(self.stop) > MOST_STOPS or not all(0 < len(text) <= LONGEST_STOP for text in self.stop):
            raise InputError(f"stop must be a text, or up to {MOST_STOPS}, of 1 to {LONGEST_STOP} characters each")

    @property
    def chosen_temperature(self) -> float:
        """The temperature in force."""
        if self.temperature is not None:
            return float(self.temperature)
        return 1.0 if self.top_p < 1 or self.seed is not None or self.n > 1 else 0.0

    def seed_of(self, choice: int) -> int | None:
        """Of the answer with this number."""
        return None if self.seed is None else (self.seed + choice) % 2**63
