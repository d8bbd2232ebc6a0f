"""Rendering a model's chat template, which comes from a file: in bounded time, and its faults in one line.

transformers renders in a sandbox, from which nothing can be reached; but a loop in a template may have no end there,
and a power no room in memory.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes

from ...common.errors import InputError, first_line

SECONDS = 5.0  # a template takes milliseconds
LARGEST = 1_000_000  # numbers in a template
INSTEAD = "give the whole prompt with chat=False"


class OtherFormError(Exception):
    """The template is made for another form of messages, or says no to these; it may say why."""


def render_messages(tokenizer: Any, template: str, messages: Sequence[dict[str, Any]]) -> str | None:
    """The messages in the model's format, up to where its answer begins; None where the template is made for another
    form of messages. Raises InputError for a template that fails."""
    try:
        return render(tokenizer, template, messages)
    except OtherFormError:
        return None


def render(tokenizer: Any, template: str, messages: Sequence[dict[str, Any]], **options: Any) -> str:
    """The same, options being variables of the template. Raises OtherFormError too."""
    _check(template)
    try:
        with _deadline(SECONDS):
            return tokenizer.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=True, **options
            )
    except TypeError as error:
        raise OtherFormError from error
    except jinja2.TemplateError as error:
        raise OtherFormError(first_line(error)) from error
    except Exception as error:  # whatever the template does
        raise InputError(f"the model's chat template cannot be used ({_why(error)}); {INSTEAD}") from error


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__


def _check(template: str) -> None:
    """Raises InputError for what one step of Python alone would take for ever, or fill the memory with."""
    if not isinstance(template, str):
        raise InputError(f"the model's chat template is no text, but {type(template).__name__}; {INSTEAD}")
    if _is_endless(template):
        raise InputError(
            f"the model's chat template cannot be used (it reckons with powers or huge numbers); {INSTEAD}"
        )


@functools.lru_cache(maxsize=16)  # reading a template takes longer than rendering it
def _is_endless(template: str) -> bool:
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (jinja2.TemplateError, RecursionError):  # also tags of transformers' own: it is told when it is rendered
        return False
    repeated = [part for product in tree.find_all(nodes.Mul) for part in (product.left, product.right)]
    return (
        next(tree.find_all(nodes.Pow), None) is not None
        or any(isinstance(part, nodes.Const) and isinstance(part.value, str) for part in repeated)
        or any(isinstance(one.value, int) and one.value > LARGEST for one in tree.find_all(nodes.Const))
    )


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Inside, the code of a template raises TimeoutError after so many seconds."""
    end, before = time.monotonic() + seconds, sys.gettrace()

    def on_call(frame: Any, event: str, argument: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith("<") else None  # templates have no file

    def on_line(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TimeoutError(f"no end after {seconds:g} seconds")
        return on_line

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)
