"""yaml as text: what is wrong with a file is an InputError of one line, as with json."""

from __future__ import annotations

from typing import Any

import yaml

from ..errors import InputError


def parse_yaml(text: str | bytes, where: object, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Any value; tags that would make objects of python are refused. where: the file that an error names."""
    try:
        return yaml.load(text, loader)
    except RecursionError as error:
        raise InputError(f"{where}: not readable as yaml (nested too deeply)") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{where}: not readable as yaml ({' '.join(str(error).split())})") from error
