"""Arguments of from_pretrained, transformers' Auto classes, and the hub: a small one of our own, in this process."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoImageProcessor, AutoModel

import autogaze_mllm as am
from autogaze_mllm import InputError
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.published import AutoGaze, AutoGazeImageProcessor

from ..helpers.files.published_folders import small_gaze

BOTH = [am.AutoGaze, AutoGaze]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gaze") / "model"
    small_gaze().save_pretrained(target)
    return target


@pytest.mark.parametrize("kind", BOTH)
def test_arguments_that_mean_something(kind: Any, folder: Path) -> None:
    for asked in ({"torch_dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": "torch.bfloat16"}):
        assert kind.from_pretrained(folder, **asked).dtype == torch.bfloat16
    assert kind.from_pretrained(folder, dtype="auto").dtype == torch.float32
    for place in ("cpu", {"": "cpu"}, torch.device("cpu"), "auto"):
        assert kind.from_pretrained(folder, device_map=place).device.type in ("cpu", "cuda")
    same = kind.from_pretrained(folder, use_flash_attn=False, use_safetensors=True, attn_implementation="sdpa")
    assert type(same) is kind and not same.training
    assert kind.from_pretrained(folder.parent, subfolder="model").config == same.config


def test_dtype_auto_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    AutoGaze.from_pretrained(folder, dtype="bfloat16").save_pretrained(tmp_path)
    assert AutoGaze.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert AutoGaze.from_pretrained(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"use_flash_attn": True}, "use_flash_attn can only be False"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation can only be 'sdpa'"),
        ({"revison": "main"}, r"unknown argument 'revison' \(known: device, dtype,"),
        ({"output_loading_info": True}, "unknown argument 'output_loading_info'"),
        ({"dtype": "bf17"}, "dtype 'bf17' is none"),
        ({"dtype": "int8"}, "dtype 'int8' is none"),
        ({"device_map": {"gazing_model": 0}}, "device .* is none"),
        ({"device": "warp"}, "device 'warp' is none"),
    ],
)
def test_arguments_without_a_meaning_are_refused(kind: Any, asked: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        kind.from_pretrained(folder, **asked)
    assert "\n" not in str(error.value) and f"{kind.__name__}.from_pretrained" in str(error.value)


def test_transformers_finds_it_by_its_model_type(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "autogaze" and config.scales == "32+64+112+224"
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert isinstance(model, AutoGaze) and model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="unknown argument 'use_flash_atn'"):
        AutoModel.from_pretrained(folder, use_flash_atn=False)


def test_transformers_finds_its_image_processor(folder: Path) -> None:
    if type(AutoImageProcessor).__name__ == "DummyObject":
        pytest.skip("this transformers has no AutoImageProcessor without torchvision")
    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    found = AutoImageProcessor.from_pretrained(folder, size=(392, 392))
    assert isinstance(found, AutoGazeImageProcessor)
    wanted = AutoGazeImageProcessor.from_pretrained(folder, size=(392, 392))
    pixels, expected = (one(frames, return_tensors="pt").pixel_values for one in (found, wanted))
    assert pixels.shape == (1, 2, 3, 392, 392) and torch.equal(pixels, expected)
    for more in ({"use_fast": False}, {"use_fast": True}, {"trust_remote_code": False}):
        assert AutoImageProcessor.from_pretrained(folder, **more) == AutoGazeImageProcessor.from_pretrained(folder)
    with pytest.raises(InputError, match="unknown argument 'sise'"):
        AutoImageProcessor.from_pretrained(folder, sise=(392, 392))


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as it takes to make a repository, to commit to it, and to read it."""

    repositories: dict[str, dict[str, bytes]]
    private: dict[str, bool]

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, code: int = 200) -> None:
        self._answer(code, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0].split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization", "me"), asked["name"])))
            self.repositories.setdefault(name, {})
            self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._json({"url": f"http://{self.headers['Host']}/{name}", "id": "1", "name": name})
        elif self.path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif path[-2] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path[-2] == "commit":
            if path[-1] == "closed":
                return self._json({"error": "no"}, 403)
            files = self.repositories["/".join(path[3:5])]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{'/'.join(path[3:5])}/commit/1"
            self._json({"commitUrl": url, "commitOid": "1" * 40, "pullRequestUrl": None})
        else:
            self._json({}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[2:3] != ["resolve"] or path[3] not in ("main", "1" * 40):
            return self._answer(404, b"", X_Error_Code="RevisionNotFound")
        found = self.repositories.get("/".join(path[:2]), {}).get("/".join(path[4:]))
        if found is None:
            return self._answer(404, b"", X_Error_Code="EntryNotFound")
        return self._answer(200, found, ETag=f'"{hash(found) & 0xFFFFFFFF:x}"', X_Repo_Commit="1" * 40)

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    handler = type("OwnHub", (Hub,), {"repositories": {}, "private": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", BOTH)
def test_a_model_goes_to_the_hub_and_comes_back(kind: Any, hub: type[Hub], folder: Path, tmp_path: Path) -> None:
    model = kind.from_pretrained(folder)
    address = model.push_to_hub("someone/my-gaze", private=True, token="hf_of_nobody", commit_message="The first")
    assert "someone/my-gaze/commit/" in address and hub.private["someone/my-gaze"]
    stored = hub.repositories["someone/my-gaze"]
    assert sorted(stored) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert all(stored[path.name] == path.read_bytes() for path in folder.iterdir())

    again = kind.from_pretrained("someone/my-gaze", revision="main")
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert AutoGazeImageProcessor.from_pretrained("someone/my-gaze", size=48).size == {"shortest_edge": 48}
    assert kind.from_pretrained("someone/my-gaze", local_files_only=True).config == model.config
    with pytest.raises(InputError, match="someone/my-gaze"):
        kind.from_pretrained("someone/my-gaze", revision="v9", cache_dir=tmp_path / "other")


def test_wrapping_hands_on_where_downloads_go(hub: type[Hub], folder: Path, tmp_path: Path) -> None:
    """A gaze model by its id, in front of a model that is loaded."""
    am.AutoGaze.from_pretrained(folder).push_to_hub("someone/my-gaze", token="hf_of_nobody")
    base, processor = tiny_model("llava", image_size=64)
    place = {"cache_dir": str(tmp_path / "elsewhere"), "token": "hf_of_nobody"}
    am.wrap(base, "someone/my-gaze", processor=processor, cache=False, hub=place).unwrap()
    assert list((tmp_path / "elsewhere").rglob("model.safetensors"))
    hub.repositories.clear()  # gone from the hub, but still there
    again = am.wrap(base, "someone/my-gaze", processor=processor, cache=False, hub={**place, "local_files_only": True})
    assert isinstance(again.gaze, am.AutoGaze)
    again.unwrap()
    with pytest.raises(InputError, match=r"wrap\(hub=\): unknown argument 'chache_dir'"):
        am.wrap(base, "pixel-diff", processor=processor, cache=False, hub={"chache_dir": "x"})


def test_the_card_says_what_the_model_is(hub: type[Hub], folder: Path) -> None:
    model = AutoGaze.from_pretrained(folder)
    model.push_to_hub("someone/my-gaze", token="hf_of_nobody")
    card = ModelCard(hub.repositories["someone/my-gaze"]["README.md"].decode())
    assert card.data.library_name == "autogaze_mllm" and "video" in card.data.tags
    number = sum(weight.numel() for weight in model.parameters())
    for said in (
        f"{number:,}",
        "32+64+112+224 at patch 16",
        "265 positions",
        "trained on 16 at a time",
        "VideoMAE",
        "0.7",
    ):
        assert said in card.text, said
    assert 'am.gaze_video("clip.mp4", "someone/my-gaze"' in card.text


def test_a_hub_that_refuses_is_one_line(hub: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = am.AutoGaze.from_pretrained(folder)
    for name, options in (("someone/my-gaze", {"branch": "closed"}), ("no//name", {})):
        with pytest.raises(InputError, match="cannot be uploaded") as error:
            model.push_to_hub(name, token="hf_of_nobody", **options)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="someone/my-gaze: cannot be uploaded: "):
        model.push_to_hub("someone/my-gaze", token="hf_of_nobody")
