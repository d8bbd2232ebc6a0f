"""json as text: what comes from a file is read in one place, what is written holds nothing that others cannot read.

Whatever is wrong with a file (encoding, syntax, nesting, types, keys) is an InputError of one line that names file and
key. Values are asked for by key and type, so nothing unknown in a file has an effect.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import InputError

T = TypeVar("T")
_MISSING: Any = object()
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 2, 60, 60, 40
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def shown(value: object) -> str:
    """A value for an error: short, whatever it is. Nested aliases of yaml, say, would fill the memory."""
    return _short.repr(value)


def parse_json(text: str | bytes, where: object) -> Any:
    """Any json value. where: the file (and line) that an error names."""
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise InputError(f"{where}: not readable as json (nested too deeply)") from error
    except ValueError as error:
        raise InputError(f"{where}: not readable as json ({error})") from error


def parse_object(text: str | bytes, where: object) -> dict[str, Any]:
    found = parse_json(text, where)
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a json object, got {shown(found)}")
    return found


def to_json(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Text that every reader of json takes: numbers that are not finite become null, and halves of characters (from
    file names that are not UTF-8) their escapes."""
    options: dict[str, Any] = {"indent": indent, "sort_keys": sort_keys, "allow_nan": False}
    plain = finite(value)
    text = json.dumps(plain, ensure_ascii=False, **options)
    return text if is_text(text) else json.dumps(plain, **options)


def writable(text: str) -> str:
    """The same text, with escapes for halves of characters (of bytes that were not UTF-8), which no tokenizer and no
    file takes."""
    return text.encode(errors="backslashreplace").decode()


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: it holds no halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def finite(value: Any) -> Any:
    """The same tree of json values with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object from a file. where: the file, and the keys that lead to the object."""

    values: Mapping[str, Any]
    where: object

    def get(self, key: str, kind: Any, default: Any = _MISSING) -> Any:
        """The value of a key. kind: a type, list[T], dict[str, T], a union or a Literal; float takes whole numbers,
        too, and none that is not finite. Raises InputError for another type, and for a missing key without a default.
        """
        if key not in self.values:
            if default is _MISSING:
                raise InputError(f"{self.where}: {key!r} is missing")
            return default
        value = self.values[key]
        if not fits(value, kind):
            raise InputError(f"{self.where}: {key!r} must be {_in_words(kind)}, got {shown(value)}")
        return value

    def object(self, key: str) -> Fields:
        """An object below this one; an empty one where there is none."""
        return Fields(self.get(key, dict | None, None) or {}, f"{self.where}: {key}")

    def made(self, key: str, kind: Any, make: Callable[[Any], T], default: Any = _MISSING) -> T:
        """A value that `make` turns into something, which may refuse it by a ValueError or TypeError."""
        value = self.get(key, kind, default)
        try:
            return make(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{self.where}: {key!r} is {shown(value)}: {error}") from error

    def known(self, kind: type) -> dict[str, Any]:
        """What there is of a dataclass's fields, each of its declared type. Everything else has no meaning."""
        hints = get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return {name: self.get(name, hints[name]) for name in names if name in self.values}


def fits(value: Any, kind: Any) -> bool:
    """Whether a json value is of a type, as `Fields.get` has it. Tuples stand for lists of that length."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(part, parts[0]) for part in value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if parts[-1] is Ellipsis:
            return all(fits(part, parts[0]) for part in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(part, parts[1]) for part in value.values())
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and _is_finite(value)
    return value is None if kind in (None, NoneType) else isinstance(value, kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is list or (origin is tuple and parts[-1] is Ellipsis):
        return f"a list, each {_in_words(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)}, each {_in_words(parts[0])}"
    if origin in (dict, Mapping):
        return f"an object, each value {_in_words(parts[1])}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
