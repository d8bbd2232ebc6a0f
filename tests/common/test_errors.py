"""What errors say stays in one line, however much there is to say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autogaze_mllm import InputError
from autogaze_mllm.common.errors import first_line, listed
from autogaze_mllm.common.storage.weights import check_weights, read_weights, shapes, write_weights


@pytest.mark.parametrize(
    ("items", "separator", "expected"),
    [
        ("ab", ", ", "a, b"),
        ("abc", ", ", "a, b and 1 more"),
        ("abcde", "; ", "a; b; and 3 more"),
        ("", ", ", ""),
    ],
)
def test_a_list_says_how_many_more_there_are(items: str, separator: str, expected: str) -> None:
    assert listed(list(items), 2, separator) == expected


def test_the_first_line_of_an_error_is_never_empty() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_weights_that_do_not_fit_are_explained_by_kind(tmp_path: Path) -> None:
    write_weights(tmp_path / "x", {f"{n:02}": torch.zeros(n) for n in range(1, 12)} | {"shape": torch.zeros(2, 3).T})
    stored = read_weights(tmp_path / "x")
    assert stored["shape"].shape == (3, 2)
    check_weights("x", shapes(stored) | {"free": (1,)}, shapes(stored), optional=["free"])
    with pytest.raises(InputError) as error:
        check_weights("x", {"shape": (2, 3), "new": (1,)}, shapes(stored), shown={"new": "part/new"})
    assert str(error.value) == (
        "x: the weights do not fit config.json: missing: part/new; left over: 01, 02, 03, 04 and 7 more; "
        "of another shape: shape (stored 3x2, expected 2x3)"
    )
    (tmp_path / "x").write_bytes(b"not weights")
    with pytest.raises(InputError, match="x: damaged or not a safetensors file"):
        read_weights(tmp_path / "x")
