"""Rows of published data files (parquet, json, jsonl), with errors that name the file and the row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import InputError, first_line
from ...common.storage.files import read_bytes
from ...common.storage.json_text import parse_json, shown, writable

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Row:
    """One row. number: counted from 1, as a viewer shows it."""

    values: dict[str, Any]
    path: Path
    number: int

    def error(self, message: str) -> InputError:
        return InputError(f"{self.path}, row {self.number}: {message}")

    def text(self, column: str) -> str:
        """A value that must be there: text, or a number that stands for one (ids)."""
        value = self.values.get(column)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
            raise self.error(f"{column!r} must be text, got {shown(value)}")
        return writable(str(value))

    def texts(self, column: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.values.get(column)
        if not isinstance(value, Iterable) or isinstance(value, str):
            raise self.error(f"{column!r} must be a list of texts, got {shown(value)}")
        found = tuple(value)
        if not found or not all(isinstance(part, str) and part.strip() for part in found):
            raise self.error(f"{column!r} must be a list of texts, got {shown(list(found))}")
        return tuple(map(writable, found))

    def letters(self, options: Sequence[str], numbered: bool = False) -> str:
        """The letters of the options; numbered: each must begin with its own, as in "A. ..."."""
        if len(options) > len(LETTERS):
            raise self.error(f"has {len(options)} options, at most {len(LETTERS)} have letters")
        letters = LETTERS[: len(options)]
        for letter, option in zip(letters, options, strict=True):
            if numbered and not option.startswith(f"{letter}."):
                raise self.error(f"option {option!r} does not begin with '{letter}.'")
        return letters

    def letter(self, column: str, letters: str) -> str:
        """The right answer as one of `letters`."""
        answer = self.text(column).strip().upper()
        if len(answer) != 1 or answer not in letters:
            raise self.error(f"answer {answer!r} in {column!r} is not one of the options {', '.join(letters)}")
        return answer

    def position(self, column: str, letters: str) -> str:
        """The right answer, given as its number counted from 0 -> its letter."""
        value = self.text(column).strip()
        if not value.isdecimal() or len(value) > 9 or int(value) >= len(letters):
            raise self.error(f"answer {value!r} in {column!r} is not one of the options 0 to {len(letters) - 1}")
        return letters[int(value)]


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """All rows of a parquet, json (a list of objects) or jsonl file. Raises InputError when a column is missing."""
    if path.suffix == ".parquet":
        return _parquet_rows(path, columns)
    content = read_bytes(path)
    if path.suffix == ".jsonl":
        lines = enumerate(content.split(b"\n"), 1)
        found = [parse_json(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    else:
        found = parse_json(content, path)
    if not isinstance(found, list) or not all(isinstance(values, dict) for values in found):
        raise InputError(f"{path}: expected a list of objects")
    rows = [Row(values, path, number) for number, values in enumerate(found, 1)]
    for row in rows:
        missing = [column for column in columns if column not in row.values]
        if missing:
            raise row.error(f"no field {missing[0]!r}; it has: {', '.join(row.values)}")
    return _not_empty(rows, path)


def _parquet_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        missing = [column for column in columns if column not in names]
        if missing:
            raise InputError(f"{path}: no column {missing[0]!r}; it has: {', '.join(names)}")
        values = file.read().to_pylist()
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # also text that is not UTF-8
        raise InputError(f"{path}: not readable as parquet ({first_line(error)})") from error
    return _not_empty([Row(row, path, number) for number, row in enumerate(values, 1)], path)


def _not_empty(rows: list[Row], path: Path) -> list[Row]:
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def find_tables(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that matches any. Raises InputError when none does."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    raise InputError(f"{folder}: no {patterns[0]} in this folder (looked for: {', '.join(patterns)})")


def content_of(paths: Iterable[Path]) -> str:
    """Hash of the data files, so that a run says which version of the data it used wherever the folder lies."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(path.name.encode(errors="surrogateescape") + b"\0" + read_bytes(path))
    return digest.hexdigest()
