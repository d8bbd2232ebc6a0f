"""`autogaze-mllm info`: versions, devices, attention back ends, extras."""

from __future__ import annotations

import argparse

from ..common.storage.json_text import to_json
from .arguments.options import print_rows, quiet


def add(verbs: argparse._SubParsersAction) -> None:
    info = verbs.add_parser("info", help="versions, devices, attention back ends, extras")
    info.add_argument("--json", action="store_true", help="print json")
    info.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    from ..common.environment import describe

    found = describe()
    if arguments.json:
        print(to_json(found))
        return 0
    rows = [("autogaze_mllm", str(found["autogaze_mllm"])), ("python", found["python"])]
    rows += [(package, version or "missing") for package, version in found["packages"].items()]
    rows += [
        ("device", ", ".join(f"{value}" if name != "threads" else f"{value} threads" for name, value in device.items()))
        for device in found["devices"]
    ]
    rows += [(f"attention: {name}", "yes" if state is True else state) for name, state in found["attention"].items()]
    rows += [(f"extra: {name}", version or "not installed") for name, version in found["extras"].items()]
    print_rows(rows)
    return 0
