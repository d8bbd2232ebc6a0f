"""A setting is declared once, as a field: its type, range, default and words.

`@settings` makes a frozen class of such fields, which checks what it is given and refuses it in one line. What else
names settings is made from `settings_of(CLASS)`: options of the command line, keys of a sweep, names in reports and the
tables of the manual.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, overload

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from .errors import InputError

T = TypeVar("T")
Number = int | float  # stays what it was given as, so that what is stored and hashed does


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _as_names(value: Any) -> Any:
    if value is None:
        return ()
    given = _as_tuple(value)
    return tuple(map(_as_name, given)) if isinstance(given, tuple) else given


def _as_name(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Span = Annotated[tuple[Number, Number], BeforeValidator(_as_tuple)]
"""From the first to the second; on the command line A or A:B."""
WholeSpan = Annotated[tuple[int, int], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]
"""Names or paths."""
PerFrame = Annotated[Number | tuple[Number, ...], BeforeValidator(_as_tuple)]
"""One number, or one for each frame of a chunk."""

LARGEST = 2**63 - 1  # of counts
LARGEST_FLOAT = 1e30  # of other numbers: float32, in which they are computed with, has no room for much more
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is declared about a field, in words and numbers."""

    help: str = ""  # a few words, as --help has them
    usual: bool | str = True  # what --help says of the default: "default N", other words, or nothing (False)
    manual: str = ""  # what the manual says in place of help
    report: str = ""  # the field's name in reports
    group: str = ""  # options of a group stand together
    flag: str | None = None  # the option, by default the name with dashes; "": it has none
    off: str = ""  # an option that makes false what otherwise is true
    metavar: str | None = None
    zero_is_none: bool = False  # as an option, 0 stands for None
    refusal: str = ""  # what an error says in place of "NAME must ..."
    low: float | None = None  # the range, and whether it holds its ends
    low_in: bool = True
    high: float | None = None
    high_in: bool = True
    slider: tuple[float, float, float] | None = None  # in a page: least, most, and the step between
    # Known once the class is made:
    name: str = ""
    kind: type = str
    choices: tuple[str, ...] = ()
    per_frame: bool = False
    whole: bool = False  # of two numbers
    texts: bool = False  # any number of them
    default: Any = None

    @property
    def option(self) -> str:
        """The option of the command line, or ""."""
        return self.off or (f"--{self.name.replace('_', '-')}" if self.flag is None else self.flag)

    @property
    def paired(self) -> bool:
        """Whether the option has a counterpart, --no-NAME."""
        return self.kind is bool and self.default is True and not self.off

    @property
    def key(self) -> str:
        """The option's name in a file of options."""
        return self.option.lstrip("-").replace("-", "_")

    @property
    def shown_default(self) -> str:
        value = self.default
        if value is None and isinstance(self.usual, str):  # "default: the selector's own; 0: never"
            return self.usual.removeprefix("default: ").partition(";")[0]
        if isinstance(value, bool) or value is None:
            return {True: "true", False: "false", None: "none"}[value]
        if isinstance(value, tuple):
            return ":".join(f"{part:g}" for part in dict.fromkeys(value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def option_help(self) -> str | None:
        usual = f"default {self.shown_default}" if self.usual is True else self.usual
        return f"{self.help} ({usual})".lstrip() if usual else self.help or None

    def read(self, text: str) -> Any:
        """A value from text. Raises ValueError."""
        if self.kind is bool:
            if text not in ("true", "false"):
                raise ValueError(f"{text!r} is neither true nor false")
            return text == "true"
        if self.kind is tuple:
            try:
                values = [(int if self.whole else float)(part) for part in text.split(":")]
            except ValueError:
                raise ValueError("expected numbers with colons between them") from None
            if len(values) > 2:
                raise ValueError("expected one number, or two with a colon between them")
            return values[0], values[-1]
        return self.kind(text)

    @property
    def what_it_is(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is tuple:
            return "a list of texts" if self.texts else "two whole numbers" if self.whole else "two numbers"
        return _TYPES[self.kind] + (", or one per frame of a chunk" if self.per_frame else "")

    def refused(self, value: Any, must: str) -> str:
        return f"{self.refusal or f'{self.name} must {must}'}, got {value}"

    def check(self, value: Any) -> None:
        """Raises InputError for a number, or one of several, that is out of range or not finite."""
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, (int, float)):
                continue
            if not (self._above(number) and self._below(number)):
                raise InputError(self.refused(number, self._range))
            if not abs(number) <= (LARGEST_FLOAT if isinstance(number, float) else LARGEST):
                raise InputError(self.refused(number, "be a finite number, and not that large"))

    def _above(self, number: float) -> bool:
        return self.low is None or number > self.low or (self.low_in and number == self.low)

    def _below(self, number: float) -> bool:
        return self.high is None or number < self.high or (self.high_in and number == self.high)

    @property
    def _range(self) -> str:
        if self.low is None and self.high is None:
            return "be a finite number"
        if self.high is not None:
            return f"lie in {'[' if self.low_in else '('}{self.low:g}, {self.high:g}{']' if self.high_in else ')'}"
        return f"be at least {self.low:g}" if self.low_in else f"be above {self.low:g}"


@overload
def setting(help: str = "", *, default: T, **words: Any) -> T: ...


@overload
def setting(help: str = "", **words: Any) -> Any: ...


def setting(
    help: str = "",
    *,
    default: Any = ...,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    **words: Any,
) -> Any:
    """A field of a class of settings. words: see `Setting`."""
    low, high = (at_least if above is None else above), (at_most if below is None else below)
    declared = Setting(help, low=low, high=high, low_in=above is None, high_in=below is None, **words)
    return Field(default, json_schema_extra={"setting": declared})  # type: ignore[dict-item]


@dataclass_transform(frozen_default=True, field_specifiers=(setting, Field, dataclasses.field))
def settings(prefix: str = "") -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen pydantic dataclass whose errors are InputErrors. prefix: what they begin with."""

    def declare(plain: type[T]) -> type[T]:
        def in_range(value: Any, info: ValidationInfo) -> Any:
            if info.field_name in known:
                known[info.field_name].check(value)
            return value

        plain._in_range = field_validator("*")(in_range)  # type: ignore[attr-defined]
        made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(plain)
        known = {one.name: one for one in settings_of(made)}
        check = made.__init__

        @wraps(check)
        def __init__(self: Any, *positional: Any, **named: Any) -> None:
            try:
                check(self, *positional, **named)
            except ValidationError as error:
                raise InputError(prefix + _in_one_line(error, known)) from None

        made.__init__ = __init__
        return made

    return declare


def settings_of(kind: type) -> list[Setting]:
    """The declared fields of a class, in order."""
    found = []
    for name, field in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
        declared = (field.json_schema_extra or {}).get("setting")
        if declared is not None:
            kinds = _kinds(field.annotation)
            seen = {
                "kind": next((known for known in (bool, float, int, str, tuple) if known in kinds), str),
                "choices": tuple(one for kind in kinds if get_origin(kind) is Literal for one in get_args(kind)),
                "per_frame": float in kinds and tuple in kinds,
                "whole": field.annotation == tuple[int, int],
                "texts": field.annotation == tuple[str, ...],
            }
            found.append(dataclasses.replace(declared, name=name, default=field.default, **seen))
    return found


def _kinds(annotation: Any) -> list[Any]:
    """int | float | None -> [int, float]"""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    if get_origin(annotation) is tuple:
        return [tuple]
    return [] if annotation is NoneType else [annotation]


def _in_one_line(error: ValidationError, known: dict[str, Setting]) -> str:
    """What is wrong with the first faulty field."""
    first = error.errors()[0]
    own = first.get("ctx", {}).get("error")
    if own is not None:  # raised by ourselves, in our words
        return str(own)
    name = str(first["loc"][0])
    if first["type"].startswith("missing") and len(first["loc"]) == 1:  # and no part of a value
        return f"{name} is missing"
    if name not in known:
        return f"unknown setting {name!r}; known: {', '.join(sorted(known))}"
    return known[name].refused(repr(first["input"]), f"be {known[name].what_it_is}")
