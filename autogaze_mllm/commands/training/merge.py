"""`autogaze-mllm merge`: a fine-tuned folder and its base model become one model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...common.errors import InputError
from ...common.storage.json_text import to_json
from ..arguments.options import quiet
from ..arguments.revisions import at_revisions, revision_option


def add(verbs: argparse._SubParsersAction) -> None:
    merge = verbs.add_parser("merge", help="make one model of a fine-tuned folder and its base model")
    merge.add_argument("folder", metavar="FINETUNED", help="what finetune wrote")
    merge.add_argument("target", metavar="FOLDER", help="where the merged model goes; it loads as the base model does")
    merge.add_argument("--base", help="where the base model is now, if it has moved")
    revision_option(merge)
    merge.add_argument("--dtype", help="float32, bfloat16 or float16 (default: that of the base model)")
    merge.add_argument("--json", action="store_true", help="print json")
    merge.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    from ...mllm.loading import load
    from ...mllm.saving import save_base
    from ...mllm.trained_parts import merge_adapter

    target = Path(arguments.target)
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: is not empty; give the merged model a folder of its own")
    (base,) = at_revisions(arguments.revision, arguments.base)
    model = load(arguments.folder, base=base, dtype=arguments.dtype, cache=False)
    merge_adapter(model.family.base)
    save_base(model, target, "")
    print(to_json({"folder": str(target)}) if arguments.json else f"merged into {target}")
    return 0
