"""A small server that speaks vLLM's routes: prompt embeddings on /v1/completions, text and embeddings of images on
/v1/chat/completions. Real HTTP, real embeddings, answered by the exported LLM in transformers."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@dataclass
class Route:
    """bodies: what was sent. dtypes: of the embeddings. enabled: --enable-prompt-embeds. break_after: ids, after which
    the line breaks. hung_up: somebody was not there any more when an id was sent."""

    llm: Any
    key: str | None = None
    enabled: bool = True
    max_model_len: int = 4096
    break_after: int | None = None
    more_read: int = 0  # tokens of a prompt than were sent
    tokenizer: Any = None  # that of the served model, where it gets text
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    wait: threading.Event | None = None  # before every id but the first


@contextmanager
def vllm_route(folder: Path, **options: Any) -> Iterator[Route]:
    """folder: what export-llm wrote."""
    route = Route(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), **options)

    class Handler(_Handler):
        pass

    Handler.route = route
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    route.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield route
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    route: Route

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        if self.path != "/v1/models" or not self._may():
            return self._refuse(404 if self._may() else 401, "Not Found")
        card = {"id": "llm", "max_model_len": self.route.max_model_len}
        return self._json(200, {"object": "list", "data": [card]})

    def do_POST(self) -> None:
        route = self.route
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may():
            return self._refuse(401, "Unauthorized")
        if not route.enabled:
            return self._refuse(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
        route.bodies.append(body)
        embedded = self._chat(body) if "messages" in body else self._unpacked(body["prompt_embeds"])
        width = route.llm.config.hidden_size
        if embedded.dim() != 2 or embedded.shape[1] != width:
            return self._refuse(400, f"`prompt_embeds` hidden_size {embedded.shape[-1]} is not the model's {width}")
        self._stream(body, embedded.float())

    def _unpacked(self, text: str) -> torch.Tensor:
        tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # nothing else came along
        self.route.dtypes.append(tensor.dtype)
        return tensor

    def _chat(self, body: dict[str, Any]) -> torch.Tensor:
        """With a chat template that hands the text on, and each `<image>` in it written out for one of the images."""
        assert self.path == "/v1/chat/completions" and not body["add_special_tokens"]
        (message,) = body["messages"]
        text, *parts = message["content"]
        images = [self._unpacked(part["image_embeds"]) for part in parts]
        tokenizer, table = self.route.tokenizer, self.route.llm.get_input_embeddings()
        pieces = text["text"].split("<image>")
        assert len(pieces) == len(images) + 1
        read = [table(torch.tensor(tokenizer(piece, add_special_tokens=False)["input_ids"])) for piece in pieces]
        joined = [read[0].float(), *(part for pair in zip(images, read[1:], strict=True) for part in pair)]
        return torch.cat([part.detach().float().reshape(-1, part.shape[-1]) for part in joined if part.numel()])

    def _stream(self, body: dict[str, Any], embedded: torch.Tensor) -> None:
        """Greedy, an event for each id."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        past, ready = None, embedded[None]
        try:
            for number in range(body["max_tokens"]):
                if self.route.break_after == number:
                    return
                if number and self.route.wait is not None:
                    self.route.wait.wait(60)
                with torch.no_grad():
                    found = self.route.llm(inputs_embeds=ready, past_key_values=past, use_cache=True)
                past, token = found.past_key_values, int(found.logits[0, -1].argmax())
                over = token in body["stop_token_ids"]
                last = number + 1 == body["max_tokens"]
                finish = "stop" if over else "length" if last else None
                chat = "messages" in body
                if chat and not number:
                    self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
                text = {"delta": {"content": "?"}} if chat else {"text": "?"}
                choice = {"index": 0, **text, "finish_reason": finish, "token_ids": [token]}
                first = {} if number else {"prompt_token_ids": [0] * (len(embedded) + self.route.more_read)}
                self._event({**first, "choices": [choice]})
                if finish:
                    break
                ready = self.route.llm.get_input_embeddings()(torch.tensor([[token]]))
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.route.hung_up.set()

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _may(self) -> bool:
        return self.route.key is None or self.headers.get("Authorization") == f"Bearer {self.route.key}"

    def _refuse(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})

    def _json(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
