"""transformers in this process: every family, one answer at a time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ...common.compute.cancelling import Cancellation, cancellable
from ...mllm.call_state import gazes
from ...mllm.calls.inputs import ModelInputs
from ...mllm.model import GazedModel
from ..intake.sampling import Sampling
from .base import Emit, Engine, Finish


class LocalEngine(Engine):
    name = "transformers"

    def __init__(self, model: GazedModel) -> None:
        super().__init__(model)
        self.shares_prefix = model.family.share_prefix

    def ready(self, inputs: ModelInputs) -> tuple[ModelInputs, bool]:
        return inputs, gazes(self.model)

    def generate(self, ready: Any, sampling: Sampling, choice: int, emit: Emit, call: Cancellation) -> Finish:
        inputs, gazed = ready
        listener = _Listener(emit, call)
        options: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "do_sample": False, "num_beams": 1}
        if sampling.chosen_temperature > 0:
            options["logits_processor"] = [_Chooser(sampling, choice)]
        with cancellable(call), nullcontext() if gazed else self.model.disabled():
            self.model.generate(**inputs, **options, streamer=listener, stopping_criteria=[listener.stop])
        call.check()
        return "stop" if listener.last in ends_of(self.model) else "length"


def ends_of(model: GazedModel) -> tuple[int, ...]:
    """Ids that end an answer."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


class _Listener(BaseStreamer):
    """Hands ids on; the first that transformers gives are those of the prompt."""

    def __init__(self, emit: Emit, call: Cancellation) -> None:
        self._emit, self._prompt = emit, True
        self.last: int | None = None
        self.stop = _Stop(call)

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        for token in value.flatten().tolist():
            if self.stop.over:  # transformers looks at its criteria one id late
                return
            self.last = token
            self.stop.enough = not self._emit(token)

    def end(self) -> None:
        return


class _Stop(StoppingCriteria):
    def __init__(self, call: Cancellation) -> None:
        self._call, self.enough = call, False

    @property
    def over(self) -> bool:
        return self.enough or self._call.cancelled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.over, dtype=torch.bool, device=input_ids.device)


class _Chooser(LogitsProcessor):
    """Chooses the next id by chance, with a generator of its own: neither other threads nor earlier answers have a part
    in what a seed gives. Of the scores only the chosen one is left."""

    def __init__(self, sampling: Sampling, choice: int) -> None:
        self._temperature, self._top_p = sampling.chosen_temperature, float(sampling.top_p)
        self._generator = torch.Generator()
        seed = sampling.seed_of(choice)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        likely, ids = torch.sort(scores.float().cpu() / self._temperature, dim=-1, descending=True, stable=True)
        shares = likely.softmax(dim=-1)
        before = shares.cumsum(dim=-1) - shares
        shares = shares.masked_fill(before >= self._top_p, 0)  # the first always stays
        chosen = ids.gather(-1, torch.multinomial(shares, 1, generator=self._generator)).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)
