"""A vLLM that is reached by its URL runs the LLM; gaze, tower and projector run here.

Notable design decisions:
- prompts are sent as embeddings to /v1/completions, so that no chat template of the engine has a part in them;
- answers come back as ids and become text here: the same text as that of the engine in this process, streamed or not;
- equal videos give equal bytes, so that the engine's prefix cache finds them;
- what is sent is looked at before: a vLLM answers embeddings that are not numbers with rubbish.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch

from ...common.compute.cancelling import Cancellation
from ...common.errors import InputError, first_line
from ...mllm.calls.inputs import ModelInputs
from ...mllm.model import GazedModel
from ..config import ServeConfig
from ..intake.fetching import hang_up
from ..intake.sampling import Sampling
from .base import Emit, Engine, EngineError, Finish
from .local import LocalEngine, ends_of
from .ways import Way, refusal

PROBE = "Hello"  # what both LLMs are asked when they are compared


class VllmEngine(Engine):
    """Raises InputError where there is none, where it cannot do what is needed, and where its LLM is another one."""

    name = "vllm"
    way: ClassVar[Way] = "prompt"
    route: ClassVar[str] = "/v1/completions"
    start: ClassVar[str] = (
        "start it with: python -m vllm.entrypoints.openai.api_server --model FOLDER --enable-prompt-embeds, where "
        "FOLDER is what `autogaze-mllm export-llm` wrote"
    )

    def __init__(self, model: GazedModel, config: ServeConfig) -> None:
        super().__init__(model)
        assert config.engine is not None
        self.parallel = config.engine_requests
        family = model.family
        why = refusal(type(family), self.way)
        if why is not None:
            raise InputError(f"{family.title} cannot run on an engine this way: {why}")
        self._dtype = torch.float32 if config.engine_dtype == "float32" else model.dtype
        self._wire = _Wire(config.engine, config.engine_key, float(config.max_seconds))
        try:
            card = self._wire.get("/v1/models")["data"][0]
            self._llm, length = str(card["id"]), card.get("max_model_len")
        except (EngineError, LookupError, TypeError) as error:
            raise InputError(
                f"{self._wire.url}: no engine answers there ({first_line(error)}); {self.start}"
            ) from error
        self.context_length = length if isinstance(length, int) else None
        self._compare()

    def ready(self, inputs: ModelInputs) -> dict[str, Any]:
        """The fields of a request that say what is to be read."""
        return {"prompt": None, "prompt_embeds": self.packed(self.embedded(inputs))}

    def embedded(self, inputs: ModelInputs) -> torch.Tensor:
        """(L, D) of one prompt."""
        embedded = self.model.embed(inputs["input_ids"], inputs["media"])[0]
        if not bool(torch.isfinite(embedded).all()):
            raise EngineError("the embeddings of a prompt are not finite numbers")
        return embedded

    def packed(self, embedded: torch.Tensor) -> str:
        """Base64 of what torch.save writes, as vLLM reads it. A copy, without what it is a part of."""
        file = io.BytesIO()
        torch.save(embedded.detach().to("cpu", self._dtype).contiguous().clone(), file)
        return base64.b64encode(file.getvalue()).decode()

    def generate(self, ready: Any, sampling: Sampling, choice: int, emit: Emit, call: Cancellation) -> Finish:
        tokens = ready.get("tokens")
        body = {**{key: value for key, value in ready.items() if key != "tokens"}, **self._options(sampling, choice)}
        return _written(self._wire.events(self.route, body, call), emit, tokens)

    def _options(self, sampling: Sampling, choice: int) -> dict[str, Any]:
        """All of them, so that no default of the engine or of its model has a part in the answer."""
        penalty = self.model.generation_config.repetition_penalty
        return {
            "model": self._llm,
            "stream": True,
            "return_token_ids": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.chosen_temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0,
            "repetition_penalty": 1.0 if penalty is None else penalty,
            "seed": sampling.seed_of(choice),
            "stop_token_ids": list(ends_of(self.model)),
        }

    def _compare(self) -> None:
        """Raises InputError where the engine goes on from a text otherwise than the LLM that is here."""
        local, sampling, call = LocalEngine(self.model), Sampling(max_tokens=1), Cancellation()
        inputs = self.model.prepare(PROBE)
        here: list[int] = []
        there: list[int] = []
        with torch.no_grad():
            local.generate(local.ready(inputs), sampling, 0, functools.partial(_keep, here), call)
            try:
                self.generate(self.ready(inputs), sampling, 0, functools.partial(_keep, there), call)
            except EngineError as error:
                raise InputError(
                    f"{self._wire.url}: the engine does not take what is sent: {error}; {self.start}"
                ) from error
        if here != there:
            raise InputError(
                f"{self._wire.url}: the engine's model {self._llm!r} is not the LLM of this one: it goes on otherwise "
                f"from the same text; {self.start}"
            )


def _keep(ids: list[int], token: int) -> bool:
    ids.append(token)
    return True


def _written(events: Iterator[dict[str, Any]], emit: Emit, tokens: int | None) -> Finish:
    """Hands the ids of a stream on, until that is enough. tokens: that the prompt has, where the engine tokenizes."""
    with contextlib.closing(events):  # type: ignore[type-var]
        for event in events:
            read = event.get("prompt_token_ids")
            if tokens is not None and read is not None and len(read) != tokens:
                raise EngineError(f"it reads a prompt of {len(read)} tokens where ours has {tokens}")
            for choice in event.get("choices", ()):
                text = choice.get("text") or (choice.get("delta") or {}).get("content")
                if text and choice.get("token_ids") is None:
                    raise EngineError("it does not tell the ids that it writes (return_token_ids): it is too old")
                for token in choice.get("token_ids") or ():
                    if not emit(token):
                        return "stop"
                if choice.get("finish_reason"):
                    return "length" if choice["finish_reason"] == "length" else "stop"
    raise EngineError("its answer broke off")


@dataclass(frozen=True)
class _Wire:
    """HTTP to one engine. url: as the user gave it. seconds: that it may be silent."""

    url: str
    key: str | None
    seconds: float

    def get(self, path: str) -> Any:
        with self._answer("GET", path, None, Cancellation()) as answer:
            return _json(answer.read())

    def events(self, path: str, body: dict[str, Any], call: Cancellation) -> Iterator[dict[str, Any]]:
        """Server-sent events of an answer, as they come."""
        data = json.dumps(body).encode()
        with self._answer("POST", path, data, call) as answer:
            for line in answer:
                if not line.startswith(b"data:"):
                    continue
                text = line[5:].strip()
                if text == b"[DONE]":
                    return
                event = _json(text)
                if "error" in event:
                    raise EngineError(_said(event))
                yield event

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, data: bytes | None, call: Cancellation
    ) -> Iterator[http.client.HTTPResponse]:
        connection, prefix = self._connection()
        try:
            connection.connect()
            call.when_cancelled(functools.partial(hang_up, connection.sock))
            key = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
            connection.request(method, prefix + path, data, {"Content-Type": "application/json", **key})
            answer = connection.getresponse()
            if answer.status != 200:
                raise EngineError(f"{answer.status}: {_said(_json(answer.read()))}")
            yield answer
            call.check()  # a connection that was hung up reads as one that ended
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            call.check()
            raise EngineError(first_line(error)) from error
        except EngineError:
            call.check()
            raise
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"--engine {self.url}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--engine {self.url}: expected a URL such as http://127.0.0.1:8001")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        make: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        if parts.scheme == "https":
            make = functools.partial(http.client.HTTPSConnection, context=ssl.create_default_context())
        return make(parts.hostname, port, timeout=self.seconds), prefix


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise EngineError("it does not answer in json") from error
    if not isinstance(found, dict):
        raise EngineError("it does not answer as an engine does")
    return found


def _said(answer: dict[str, Any]) -> str:
    """The one line of an error."""
    error = answer.get("error", answer)
    message = error.get("message") if isinstance(error, dict) else error
    return first_line(ValueError(str(message)))
