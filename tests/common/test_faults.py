"""json, files, locks and labels at the edge: one line, no half of a file, nothing that another reader chokes on."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from autogaze_mllm.common.drawing.labels import in_plot, told_apart
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import (
    atomic_write,
    read_fields,
    read_json,
    write_json,
    write_text,
    written_by_others,
)
from autogaze_mllm.common.storage.json_text import Fields, finite, parse_json, shown, to_json
from autogaze_mllm.common.storage.locks import run_lock, wait_lock
from autogaze_mllm.common.storage.summed import write_summed
from autogaze_mllm.common.storage.weights import write_weights
from autogaze_mllm.evaluation.reports.accuracy_plot import Curve, accuracy_plot
from autogaze_mllm.evaluation.reports.document import Heading, Items, Table, Text, to_markdown

from ..helpers.forked import forked


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": "M\xfcller"}', "not UTF-8 text"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 text"),
        (b'{"a": 1', "not readable as json"),
        (b"{'a': 1}", "not readable as json"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"a":' * 10**6, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not readable as json"),
        (b"[1, 2]", "expected a json object"),
        (b"null", "expected a json object"),
        (b"", "not readable as json"),
    ],
)
def test_what_is_no_json_object_is_one_line_with_its_file(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(error.value) and "\n" not in str(error.value)


def test_a_mark_of_byte_order_does_not_matter_and_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(path)


@dataclass
class Sizes:
    width: int = 1
    share: float | None = None
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"width": True}, "'width' must be a whole number, got True"),
        ({"width": 1.0}, "'width' must be a whole number"),
        ({"width": None}, "'width' must be a whole number"),
        ({"share": float("nan")}, "'share' must be a finite number or null"),
        ({"share": 10**400}, "'share' must be a finite number or null"),
        ({"names": ["a", 1]}, "'names' must be a list, each text"),
        ({"names": "abc"}, "'names' must be a list, each text"),
        ({"kind": "c"}, "'kind' must be one of a, b"),
        ({"kind": ["x"] * 10**6}, "'kind' must be one of a, b, got "),
    ],
)
def test_fields_of_wrong_types_are_named(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        Fields(values, "x.json").known(Sizes)
    assert str(error.value).startswith(f"x.json: {told}") and len(str(error.value)) < 300


def test_fields_that_are_not_known_have_no_meaning(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"width": 3, "share": 1, "hub": {"trust_remote_code": True}, "within": {"a": 1}})
    stored = read_fields(tmp_path / "x")
    assert stored.known(Sizes) == {"width": 3, "share": 1}
    assert stored.get("none", int, 7) == 7 and stored.object("none").get("deeper", str, "") == ""
    for key in ("none", "within"):
        with pytest.raises(InputError, match=f"x: {key}: 'deeper' is missing"):
            stored.object(key).get("deeper", str)


def test_json_that_is_written_is_read_by_everyone(tmp_path: Path) -> None:
    """No NaN or Infinity, which json does not know, and names of bytes that are not UTF-8 come back as they were."""
    odd = {"loss": float("nan"), "psnr": [float("inf"), 1.5], "name": "a\udcff", "sign": "ü"}
    write_json(tmp_path / "x", odd)
    text = (tmp_path / "x").read_bytes().decode("utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "loss": None,
        "psnr": [None, 1.5],
        "name": "a\udcff",
        "sign": "ü",
    }
    assert finite(odd)["sign"] == "ü" and "ü" in to_json({"sign": "ü"}) and parse_json(to_json((1, 2)), "x") == [1, 2]
    write_text(tmp_path / "y", "a\udcff")
    assert (tmp_path / "y").read_text() == "a\\udcff"


def test_what_an_error_shows_is_short_however_deep_it_goes() -> None:
    bomb: Any = ["x"] * 10
    for _ in range(12):
        bomb = [bomb] * 10  # 10 ** 13 entries
    start = time.monotonic()
    assert len(shown(bomb)) < 500 and len(shown("x" * 10**6)) < 100 and time.monotonic() - start < 1


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "text", "weights", "bytes"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def write() -> int:
        try:
            if kind == "json":
                write_json(path, {"a": "x" * 10_000})
            elif kind == "text":
                write_text(path, "x" * 10_000)
            elif kind == "weights":
                write_weights(path, {"a": torch.zeros(10_000)})
            else:
                with atomic_write(path) as temporary:
                    temporary.write_bytes(b"x" * 10_000)
        except InputError as error:
            print(error)
            return 2
        return 0

    code, out, err = forked(write, file_bytes=4096)
    assert (code, err) == (2, "") and out.count("\n") == 1
    assert str(path) in out and "make room, then run the same again" in out
    assert path.read_text() == "before" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_is_written_is_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "note.txt", "text")
        write_weights(tmp_path / "weights", {"a": torch.zeros(2)})  # safetensors' own are of their owner alone
        write_summed(tmp_path / "summed", {"a": torch.zeros(2)}, "facts", {})
        with written_by_others(tmp_path):
            save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        left = os.umask(0o027)
    finally:
        os.umask(before)
    assert left == 0o027
    names = ["model.safetensors", "note.txt", "summed", "weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in names] == [0o640] * 4


def test_a_folder_that_is_gone_and_a_name_that_is_long_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "gone" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            write_json(path, {})
    write_json(tmp_path / ("x" * 250), {})  # its temporary name is no longer


# -- locks -----------------------------------------------------------------------------------------------------------


def test_a_lock_is_one_processs_names_it_and_ends_with_it(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        with run_lock(tmp_path), run_lock(tmp_path):  # it may enter several times
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with (
        pytest.raises(InputError, match=rf"another process \({pid} on .*, since 2.*\) is at work here"),
        run_lock(tmp_path),
    ):
        pass
    with run_lock(tmp_path, "-00001"), run_lock(tmp_path / "below"):  # other parts and folders are free
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".run.owner").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".run.owner").exists()
    (tmp_path / ".run.owner").write_bytes(b"\xff[")  # rubbish there does not matter
    with run_lock(tmp_path):
        pass


# -- labels ----------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_lock_goes_on_where_there_is_none(tmp_path, monkeypatch, caplog) -> None:
    """As on some network file systems."""

    def refused(*_: object, **__: object) -> None:
        raise NotImplementedError("no locks here")

    with wait_lock(tmp_path / "x.lock"):
        pass
    monkeypatch.setattr(FileLock, "acquire", refused)
    inside = False
    with wait_lock(tmp_path / "x.lock"):
        inside = True
    assert inside and "cannot be locked here" in caplog.text and "no locks here" in caplog.text


def test_labels_are_as_short_as_tells_them_apart() -> None:
    assert told_apart(["b1/gaze", "b2/gaze", "random"]) == {
        "b1/gaze": "b1/gaze",
        "b2/gaze": "b2/gaze",
        "random": "random",
    }
    assert told_apart(["/runs/a/gaze", "other/model"]) == {"/runs/a/gaze": "gaze", "other/model": "model"}
    assert told_apart(["x/a/gaze", "y/a/gaze", "gaze"]) == {
        "x/a/gaze": "x/a/gaze",
        "y/a/gaze": "y/a/gaze",
        "gaze": "gaze",
    }
    found = told_apart(["gaze", "./gaze", "/gaze", "a//gaze", "org/gaze", "org/gaze"])
    assert len(set(found.values())) == len(found) == 5


@pytest.mark.parametrize("label", ["m$x_$", "$\\frac{", "_hidden", "a\udcff", "<b>", "100 %"])
def test_any_label_can_be_drawn(label: str) -> None:
    assert accuracy_plot([Curve(label, [(1.0, 0.5, 0.4, 0.6)])], "tokens").startswith(b"\x89PNG")
    assert not in_plot(label).startswith("_")


def test_a_report_in_markdown_holds_no_tags() -> None:
    tag = "<script>alert(1)</script>"
    text = to_markdown(
        tag, [Heading(tag), Text(f"{tag}\n# more"), Items([tag]), Table((tag, "a|b"), [(tag, "R&D &lt;")])]
    )
    assert "<" not in text and "&lt;script>" in text and "\n# more" not in text
    assert "R&D &amp;lt;" in text and "a\\|b" in text
