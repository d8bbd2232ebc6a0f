"""`--revision MODEL=REVISION`: which commit, tag or branch of a model on the hub a command takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TypeVar

from ...common.errors import InputError

Name = TypeVar("Name", str, str | None)
HELP = "a commit, tag or branch of a model on the hub; once for each model"


def revision_option(parser: argparse._ActionsContainer, words: str = HELP, metavar: str = "MODEL=REVISION") -> None:
    parser.add_argument("--revision", action="append", metavar=metavar, help=words)


def read_revisions(given: Sequence[str] | None) -> dict[str, str]:
    """MODEL=REVISION, once for each model -> revision by model."""
    found = {}
    for text in given or ():
        name, equals, revision = text.rpartition("=")
        if not (name and equals and revision):
            raise InputError(f"--revision {text!r}: expected MODEL=REVISION, such as nvidia/AutoGaze=5100fae")
        found[name] = revision
    return found


def at_revisions(given: Sequence[str] | None, *models: Name) -> list[Name]:
    """The models that a command was given, those with a revision as the folders that hold it.

    Raises InputError for a revision of something else, and for one that cannot be had.
    """
    found = read_revisions(given)
    if not found:  # nothing is imported that a command may not need
        return list(models)
    from ...common.storage.pinned import check_named, pinned

    check_named(found, [name for name in models if name is not None])
    return [name if name is None else pinned(name, found.get(name)) for name in models]
