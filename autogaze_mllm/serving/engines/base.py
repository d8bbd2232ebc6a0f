"""What an engine does: it reads a prompt that was prepared, and writes ids one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from ...common.compute.cancelling import Cancellation
from ...mllm.calls.inputs import ModelInputs
from ...mllm.model import GazedModel
from ..intake.sampling import Sampling

Finish = Literal["stop", "length"]
Emit = Callable[[int], bool]


class EngineError(Exception):
    """The engine does not do its work. One line, for the operator and the client."""


class Engine(ABC):
    """parallel: requests that it works on at once. context_length: tokens that it takes, where it says."""

    name: ClassVar[str]
    parallel: int = 1
    context_length: int | None = None
    shares_prefix: bool = False  # a video's keys and values are kept with its visual tokens

    def __init__(self, model: GazedModel) -> None:
        self.model = model

    @abstractmethod
    def ready(self, inputs: ModelInputs) -> Any:
        """What `generate` needs of a prompt, made while the LLM works on others. inputs: of one prompt."""

    @abstractmethod
    def generate(self, ready: Any, sampling: Sampling, choice: int, emit: Emit, call: Cancellation) -> Finish:
        """Writes an answer: calls emit(id) for each of its ids, until that says False. choice: its number among those
        to the same question. Runs in a thread. Raises CancelledCall when the call is cancelled, EngineError when the
        engine fails. -> why it ended: "stop" by itself, "length" as long as it may be."""
