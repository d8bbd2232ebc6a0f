"""`--config FILE`: a yaml or json file that fills a verb's options, and the one that a run leaves to repeat it.

The keys are the options' names (`max-new-tokens` or `max_new_tokens`), positional ones included. What stands on the
command line goes before.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import InputError
from ...common.fields import settings_of
from ...common.storage.json_text import parse_json, shown
from ...common.storage.yaml_text import parse_yaml
from ...gaze.settings import VideoSettings

CONFIG = "config.yaml"  # in the folder of a run
OF_THE_CALL = ("json", "resume", "retry_failed", "validate_only")  # and not of what is done
PER_FRAME = {one.key for one in settings_of(VideoSettings) if one.per_frame}


class _Loader(yaml.SafeLoader):
    """All but true, false and nothing stays text, for the options to read: `off` and `no` are words, as 1:30 is."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.endswith((":null", ":merge"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), ["t", "f"])


class _Fill(argparse.Action):
    """Makes what stands in the file the defaults of the verb's options."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, values)
        options, file = _options(parser), Path(values)
        given = {str(key).replace("-", "_"): value for key, value in _read(file).items()}
        for name, value in given.items():
            if name not in options:
                near = difflib.get_close_matches(name, options, 1) or [", ".join(options)]
                raise InputError(f"{file}: {name!r} is not an option of {parser.prog}; the nearest: {near[0]}")
            if value is not None:
                options[name].default = _value(options[name], value, file)
                options[name].required = False
        for names in _excluding(parser):
            if len(both := [name for name in names if given.get(name) is not None]) > 1:
                raise InputError(f"{file}: {' and '.join(both)} do not go together")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Gives every verb the option --config."""
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                add_config(verb)
            return
    parser.add_argument(
        "--config", metavar="FILE", action=_Fill, help="yaml or json file of options; what is given here goes before"
    )
    parser.set_defaults(parser=parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command, from the --config file where the command line has none.

    `chosen` of the result is what would repeat it. Raises InputError for a bad file.
    """
    arguments = parser.parse_args(argv)
    if arguments.config is not None:
        arguments = parser.parse_args(argv)  # now the file's values are the defaults
        options = _options(arguments.parser)
        for names in _excluding(arguments.parser):
            typed = [name for name in names if getattr(arguments, name) != options[name].default]
            for name in names if typed else ():
                setattr(arguments, name, getattr(arguments, name) if name in typed else None)
    names = [name for name in _options(arguments.parser) if name not in OF_THE_CALL]
    arguments.chosen = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return arguments


def write_config(arguments: argparse.Namespace, path: Path) -> None:
    """What would repeat the run, as a file for --config."""
    from ...common.storage.files import write_text

    text = yaml.safe_dump(arguments.chosen, sort_keys=False, allow_unicode=True)
    write_text(path, f"# {arguments.parser.prog} --config {path.name}\n{text}")


def repeating(arguments: argparse.Namespace, leave_out: Sequence[str] = ()) -> str:
    """The command line that does the same again. Files are named without their folders, which are nobody's business;
    what only a file of options can say (one number for each frame) is shown as one."""
    parser, words, lines = arguments.parser, [], []
    for name, action in _options(parser).items():
        value = arguments.chosen.get(name)
        if value is None or name in leave_out:
            continue
        if isinstance(value, (list, tuple)) and name in PER_FRAME:
            lines.append(yaml.safe_dump({name: list(value)}, default_flow_style=True, width=1000).strip("{}\n "))
        elif not action.option_strings:
            words.append(shlex.quote(Path(value).name if name == "video" else str(value)))
        elif isinstance(action, argparse.BooleanOptionalAction):
            words.append(action.option_strings[0 if value else 1])
        elif action.nargs == 0:  # a switch
            words += action.option_strings[:1] if value else []
        elif isinstance(action, argparse._AppendAction):
            words += [word for one in value for word in (action.option_strings[0], shlex.quote(str(one)))]
        else:
            words += [action.option_strings[0], shlex.quote(str(value))]
    command = " ".join([parser.prog, *words, *(["--config", "options.yaml"] if lines else [])])
    return "\n".join([command, *(["", "# options.yaml", *lines] if lines else [])])


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}


def _excluding(parser: argparse.ArgumentParser) -> list[list[str]]:
    return [[action.dest for action in group._group_actions] for group in parser._mutually_exclusive_groups]


def _read(file: Path) -> dict[Any, Any]:
    from ...common.storage.files import read_bytes

    content = read_bytes(file)
    found = parse_json(content, file) if file.suffix == ".json" else parse_yaml(content, file, _Loader)
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{file}: expected lines `OPTION: VALUE`")
    return found or {}


def _value(action: argparse.Action, value: Any, file: Path) -> Any:
    """A value as the command line would give it."""
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise InputError(f"{file}: {action.dest} must be true or false, got {shown(value)}")
        return value
    per_frame = action.dest in PER_FRAME
    several = action.nargs == "+" or per_frame or isinstance(action, argparse._AppendAction)
    if isinstance(value, list) and several:
        return [_single(action, one, file) for one in value]
    return [_single(action, value, file)] if several and not per_frame else _single(action, value, file)


def _single(action: argparse.Action, value: Any, file: Path) -> Any:
    kind: Any = action.type or str
    try:
        if isinstance(value, (bool, list, dict)):
            raise ValueError
        found = kind(str(value))
    except ValueError as error:
        words = {int: "a whole number", float: "a number"}.get(kind, "one value")
        raise InputError(f"{file}: {action.dest} must be {words}, got {shown(value)}") from error
    if action.choices is not None and found not in action.choices:
        raise InputError(f"{file}: {action.dest} must be one of {', '.join(action.choices)}, got {shown(value)}")
    return found
