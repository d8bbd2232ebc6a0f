"""`autogaze-mllm export-llm`: the LLM of a model as a checkpoint of its own."""

from __future__ import annotations

import argparse

from ..common.storage.json_text import to_json
from .arguments.options import quiet
from .arguments.revisions import at_revisions, revision_option


def add(verbs: argparse._SubParsersAction) -> None:
    export = verbs.add_parser("export-llm", help="write a model's LLM as a checkpoint of its own, for an engine")
    export.add_argument("model", metavar="MODEL", help="hub id or folder of a base model, a saved one, or bundled")
    export.add_argument("target", metavar="FOLDER", help="where LLM and tokenizer go")
    revision_option(export)
    export.add_argument("--dtype", help="float32, bfloat16 or float16 (default: that of the model)")
    export.add_argument("--json", action="store_true", help="print json")
    export.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    from ..mllm.loading import load_or_wrap
    from ..serving.export import export_llm

    (source,) = at_revisions(arguments.revision, arguments.model)
    model = load_or_wrap(source, "all", dtype=arguments.dtype, cache=False)
    target = export_llm(model, arguments.target)
    print(to_json({"folder": str(target)}) if arguments.json else f"its LLM is in {target}")
    return 0
