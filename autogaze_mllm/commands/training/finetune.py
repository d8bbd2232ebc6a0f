"""`autogaze-mllm finetune`: train a wrapped model on a user's own videos and images."""

from __future__ import annotations

import argparse
from typing import Any

from ...common.errors import InputError
from ...common.storage.json_text import to_json
from ...finetuning.config import (
    ALONG,
    HOW,
    PARTS,
    PRESETS,
    WHAT,
    AdapterConfig,
    FinetuneConfig,
    PartConfig,
    RolloutConfig,
)
from ..arguments.config_file import CONFIG, write_config
from ..arguments.options import add_settings, gaze_options, load_model, pinned_models, print_rows, quiet, values_of


def add(verbs: argparse._SubParsersAction) -> None:
    finetune = verbs.add_parser("finetune", help="train a wrapped model on your own videos and images")
    finetune.add_argument("--data", nargs="+", required=True, metavar="FILE", help="json or jsonl files of samples")
    add_settings(finetune, FinetuneConfig)
    finetune.add_argument("--output", metavar="FOLDER", help="where checkpoints and the result go")
    finetune.add_argument("--model", help="hub id or folder of the base model (default: a built-in untrained one)")
    finetune.add_argument("--check", action="store_true", help="only read every sample, and report all faults")
    finetune.add_argument("--dry-run", action="store_true", help="only tell parameters, tokens, memory and steps")
    finetune.add_argument("--processes", type=int, default=1, metavar="N", help="of the training, for --dry-run")
    finetune.add_argument("--eval-data", nargs="+", default=[], metavar="FILE", help="samples that are not trained on")

    what = finetune.add_argument_group("what is trained")
    what.add_argument(
        "--train", default="sft", choices=["align", "sft", "lora", "gaze"], help="preset (default sft), see below"
    )
    for part in PARTS:
        what.add_argument(f"--{part}", choices=["off", "full", "lora"], help=f"the {part}, instead of the preset's")
        what.add_argument(f"--{part}-lr", type=float, metavar="RATE", help=f"learning rate of the {part}")
    what.add_argument("--train-gaze", choices=["off", "full"], help="the gaze model, instead of the preset's")
    what.add_argument("--gaze-lr", type=float, metavar="RATE", help="learning rate of the gaze model (default 1e-5)")
    for kind in (RolloutConfig, AdapterConfig):
        add_settings(what, kind, WHAT)
    add_settings(finetune.add_argument_group("how"), FinetuneConfig, HOW)
    files = finetune.add_argument_group("along the way")
    files.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT", help="go on (from the latest)")
    add_settings(files, FinetuneConfig, ALONG)
    gaze_options(finetune, "default: nvidia/AutoGaze with --model, otherwise the bundled one")
    finetune.epilog = (
        "presets: align trains the projector alone (1e-3); sft tower, projector and LLM (2e-5); lora LoRA in the LLM "
        "(1e-4) and the projector (2e-5); gaze the gaze model (1e-5), by what the LLM makes of several ways to gaze. "
        "Several processes: torchrun, accelerate launch or deepspeed, see scripts/finetune.sh."
    )
    finetune.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        return _check(arguments)
    if arguments.processes < 1:
        raise InputError(f"--processes must be at least 1, got {arguments.processes}")
    if arguments.output is None and not arguments.dry_run:
        raise InputError("--output is missing: where checkpoints and the result go")
    quiet()
    from ...common.compute import distributed
    from ...common.storage.files import output_folder
    from ...finetuning.benchmark_eval import chosen_benchmark
    from ...finetuning.checkpoints import latest_checkpoint
    from ...finetuning.data.samples import load_samples
    from ...finetuning.deepspeed import chosen_engine
    from ...finetuning.run import describe, finetune, prepare, training_device
    from ...mllm.loading import base_source

    config = _config(arguments)
    # What can be refused is refused before a large model is read.
    chosen_engine(config)
    chosen_benchmark(config)
    load_samples([*config.data, *config.eval_data], config.media_root)
    if not arguments.dry_run:
        latest_checkpoint(config)
    source = None
    if arguments.model is not None:
        source = base_source(pinned_models(arguments, arguments.model, arguments.gaze)[0])
    arguments.device = arguments.device or str(training_device(config.cpu))
    arguments.no_cache = True  # fine-tuning has one of its own
    model = load_model(arguments, untrained=True)
    if arguments.dry_run:
        summary = describe(prepare(model, config), arguments.processes)
        print(to_json(summary)) if arguments.json else print_rows(_rows(summary))
        return 0
    if distributed.is_first():
        write_config(arguments, output_folder(config.output) / CONFIG)
    result = finetune(model, config, source)
    if distributed.is_first():
        kept = ("steps", "loss", "eval_loss", "eval_accuracy", "output")
        rows = [(name, str(result[name])) for name in kept if name in result]
        print(to_json(result)) if arguments.json else print_rows(rows)
    return 0


def _config(arguments: argparse.Namespace) -> FinetuneConfig:
    parts = {}
    for part in PARTS:
        plan = PRESETS[arguments.train][part]
        mode, rate = getattr(arguments, part) or plan.mode, getattr(arguments, f"{part}_lr")
        # A part that the preset does not train takes the rate that some preset has for this way of training.
        usual = plan.lr if mode == plan.mode else PRESETS["lora" if mode == "lora" else "sft"]["llm"].lr
        parts[part] = PartConfig(mode, usual if rate is None else rate)
    gaze = PRESETS[arguments.train].get("gaze", PartConfig())
    rate = PRESETS["gaze"]["gaze"].lr if arguments.gaze_lr is None else arguments.gaze_lr
    parts["gaze"] = PartConfig(arguments.train_gaze or gaze.mode, rate)
    return FinetuneConfig(
        data=tuple(arguments.data),
        output=arguments.output or "",
        eval_data=tuple(arguments.eval_data),
        parts=parts,
        lora=AdapterConfig(**values_of(arguments, AdapterConfig)),
        rollouts=RolloutConfig(**values_of(arguments, RolloutConfig)),
        resume=arguments.resume,
        progress=not arguments.json,
        **values_of(arguments, FinetuneConfig),
    )


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A dry run's numbers for people."""
    packs = f" in {summary['packs']} packs" if summary["packs"] is not None else ""
    rows = [
        ("samples", f"{summary['samples']}{packs}"),
        ("videos", f"{summary['videos']} ({summary['gazed']} gazed now)"),
    ]
    for part, size in summary["parts"].items():
        how = f"{size['mode']}, lr {size['lr']:g}" if size["trained"] else "frozen"
        rows.append((part, f"{size['parameters']:,} parameters, {size['trained']:,} trained ({how})"))
    for name in ("tokens", "visual_tokens", "learnt_tokens"):
        spread = "  ".join(f"{which} {value}" for which, value in summary[name].items())
        rows.append((name.replace("_", " "), spread))
    memory = "  ".join(f"{name} {size:.2f}" for name, size in summary["memory_gib"].items())
    rows += [("memory, GiB", f"{memory} (per process, {summary['precision']}, {summary['processes']} processes)")]
    return [*rows, ("updates", str(summary["steps"]))]


def _check(arguments: argparse.Namespace) -> int:
    from ...finetuning.data.samples import check_samples

    files = [*arguments.data, *arguments.eval_data]
    samples, faults = check_samples(files, arguments.media_root, progress=not arguments.json)
    if arguments.json:
        listed = [{"file": fault.file, "row": fault.row, "message": fault.message} for fault in faults]
        print(to_json({"samples": len(samples), "faults": listed}))
    else:
        for fault in faults:
            print(fault)
        media = {medium for sample in samples for medium in sample.media}
        print(f"{len(samples)} samples with {len(media)} media files, {len(faults)} faults")
    return 2 if faults or not samples else 0
