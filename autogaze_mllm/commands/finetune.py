"""`autogaze-mllm finetune`: train a wrapped model on a user's own videos and images."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from .config_file import CONFIG, write_config
from .options import gaze_options, load_model, print_rows, quiet

if TYPE_CHECKING:
    from ..finetuning.config import FinetuneConfig

PARTS = ("tower", "projector", "llm")


def add(verbs: argparse._SubParsersAction) -> None:
    finetune = verbs.add_parser("finetune", help="train a wrapped model on your own videos and images")
    finetune.add_argument("--data", nargs="+", required=True, metavar="FILE", help="json or jsonl files of samples")
    finetune.add_argument("--media-root", metavar="FOLDER", help="what relative media paths start from")
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
    what.add_argument(
        "--rollouts", type=int, default=4, metavar="N", help="ways to gaze a video, to learn gaze from (default 4)"
    )
    what.add_argument("--temperature", type=float, default=1.0, metavar="T", help="that rollouts are drawn at")
    what.add_argument("--lora-rank", type=int, default=64, metavar="N")
    what.add_argument("--lora-alpha", type=float, default=16.0, metavar="A")
    what.add_argument("--lora-dropout", type=float, default=0.05, metavar="P")

    how = finetune.add_argument_group("how")
    how.add_argument("--epochs", type=float, default=1.0)
    how.add_argument("--max-steps", type=int, default=0, metavar="N", help="updates, instead of epochs")
    how.add_argument("--batch-size", type=int, default=1, metavar="N", help="samples per process and step (default 1)")
    how.add_argument("--accumulate", type=int, default=1, metavar="N", help="steps per update (default 1)")
    how.add_argument("--warmup", type=float, default=0.03, metavar="SHARE", help="of the updates (default 0.03)")
    how.add_argument("--weight-decay", type=float, default=0.0, metavar="W")
    how.add_argument("--clip", type=float, default=1.0, metavar="NORM", help="of the gradients (default 1; 0: never)")
    how.add_argument("--max-length", type=int, default=16384, metavar="TOKENS", help="of a sample (default 16384)")
    how.add_argument(
        "--too-long", default="error", choices=["error", "truncate"], help="longer samples; only text is ever cut"
    )
    how.add_argument("--packing", action="store_true", help="several samples in one row, kept apart by attention")
    how.add_argument("--no-grouping", action="store_true", help="do not put samples of like length together")
    how.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    how.add_argument("--no-gradient-checkpointing", action="store_true", help="faster, and needs far more memory")
    how.add_argument("--deepspeed", metavar="NAME", help="zero2, zero3, zero2_offload, zero3_offload or a json file")
    how.add_argument("--cpu", action="store_true", help="do not use an accelerator")
    how.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read samples (default 2)")
    how.add_argument("--seed", type=int, default=42)
    how.add_argument("--cache", metavar="FOLDER", help="where gazed videos are kept")

    files = finetune.add_argument_group("along the way")
    files.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT", help="go on (from the latest)")
    files.add_argument("--save-steps", type=int, default=500, metavar="N", help="updates between checkpoints; 0: none")
    files.add_argument("--save-total-limit", type=int, default=2, metavar="N", help="checkpoints kept (default 2)")
    files.add_argument("--eval-steps", type=int, default=0, metavar="N", help="updates between evaluations")
    files.add_argument(
        "--eval-benchmark", metavar="NAME=FOLDER", help="a benchmark's data, asked at every evaluation (see eval)"
    )
    files.add_argument("--eval-limit", type=int, default=0, metavar="N", help="only its first N questions")
    files.add_argument("--log-steps", type=int, default=10, metavar="N")
    files.add_argument("--report", default="none", choices=["none", "tensorboard", "wandb"])
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
    from ..common import distributed
    from ..common.files import output_folder
    from ..finetuning.benchmark_eval import chosen_benchmark
    from ..finetuning.data.samples import load_samples
    from ..finetuning.deepspeed import chosen_engine
    from ..finetuning.run import describe, finetune, latest_checkpoint, prepare, training_device
    from ..mllm.loading import base_source

    config = _config(arguments)
    # What can be refused is refused before a large model is read.
    chosen_engine(config)
    chosen_benchmark(config)
    load_samples([*config.data, *config.eval_data], config.media_root)
    if not arguments.dry_run:
        latest_checkpoint(config)
    source = None if arguments.model is None else base_source(arguments.model)
    arguments.device = arguments.device or str(training_device(config.cpu))
    arguments.no_cache = True  # fine-tuning has one of its own
    model = load_model(arguments, untrained=True)
    if arguments.dry_run:
        told = describe(prepare(model, config), arguments.processes)
        print(json.dumps(told)) if arguments.json else print_rows(_rows(told))
        return 0
    if distributed.is_first():
        write_config(arguments, output_folder(config.output) / CONFIG)
    result = finetune(model, config, source)
    if distributed.is_first():
        kept = ("steps", "loss", "eval_loss", "eval_accuracy", "output")
        rows = [(name, str(result[name])) for name in kept if name in result]
        print(json.dumps(result)) if arguments.json else print_rows(rows)
    return 0


def _config(arguments: argparse.Namespace) -> FinetuneConfig:
    from ..finetuning.config import FinetuneConfig
    from ..finetuning.parts import PRESETS, LoraPlan, PartPlan, RolloutPlan

    parts = {}
    for part in PARTS:
        plan = PRESETS[arguments.train][part]
        mode, rate = getattr(arguments, part) or plan.mode, getattr(arguments, f"{part}_lr")
        # A part that the preset does not train takes the rate that some preset has for this way of training.
        usual = plan.lr if mode == plan.mode else PRESETS["lora" if mode == "lora" else "sft"]["llm"].lr
        parts[part] = PartPlan(mode, usual if rate is None else rate)
    gaze = PRESETS[arguments.train].get("gaze", PartPlan())
    rate = PRESETS["gaze"]["gaze"].lr if arguments.gaze_lr is None else arguments.gaze_lr
    parts["gaze"] = PartPlan(arguments.train_gaze or gaze.mode, rate)
    return FinetuneConfig(
        data=tuple(arguments.data),
        output=arguments.output or "",
        media_root=arguments.media_root,
        eval_data=tuple(arguments.eval_data),
        parts=parts,
        lora=LoraPlan(arguments.lora_rank, arguments.lora_alpha, arguments.lora_dropout),
        rollouts=RolloutPlan(arguments.rollouts, arguments.temperature),
        epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        batch_size=arguments.batch_size,
        accumulate=arguments.accumulate,
        warmup=arguments.warmup,
        weight_decay=arguments.weight_decay,
        clip=arguments.clip,
        max_length=arguments.max_length,
        too_long=arguments.too_long,
        packing=arguments.packing,
        group_by_length=not arguments.no_grouping,
        precision=arguments.precision,
        gradient_checkpointing=not arguments.no_gradient_checkpointing,
        deepspeed=arguments.deepspeed,
        save_steps=arguments.save_steps,
        save_total_limit=arguments.save_total_limit,
        eval_steps=arguments.eval_steps,
        eval_benchmark=arguments.eval_benchmark,
        eval_limit=arguments.eval_limit,
        log_steps=arguments.log_steps,
        report=arguments.report,
        workers=arguments.workers,
        seed=arguments.seed,
        cpu=arguments.cpu,
        resume=arguments.resume,
        cache=arguments.cache,
        progress=not arguments.json,
    )


def _rows(told: dict[str, Any]) -> list[tuple[str, str]]:
    """A dry run's numbers for people."""
    packs = f" in {told['packs']} packs" if told["packs"] is not None else ""
    rows = [("samples", f"{told['samples']}{packs}"), ("videos", f"{told['videos']} ({told['gazed']} gazed now)")]
    for part, size in told["parts"].items():
        how = f"{size['mode']}, lr {size['lr']:g}" if size["trained"] else "frozen"
        rows.append((part, f"{size['parameters']:,} parameters, {size['trained']:,} trained ({how})"))
    for name in ("tokens", "visual_tokens", "learnt_tokens"):
        spread = "  ".join(f"{which} {value}" for which, value in told[name].items())
        rows.append((name.replace("_", " "), spread))
    memory = "  ".join(f"{name} {size:.2f}" for name, size in told["memory_gib"].items())
    rows += [("memory, GiB", f"{memory} (per process, {told['precision']}, {told['processes']} processes)")]
    return [*rows, ("updates", str(told["steps"]))]


def _check(arguments: argparse.Namespace) -> int:
    from ..finetuning.data.samples import check_samples

    files = [*arguments.data, *arguments.eval_data]
    samples, faults = check_samples(files, arguments.media_root, progress=not arguments.json)
    if arguments.json:
        told = [{"file": fault.file, "row": fault.row, "message": fault.message} for fault in faults]
        print(json.dumps({"samples": len(samples), "faults": told}, ensure_ascii=False))
    else:
        for fault in faults:
            print(fault)
        media = {medium for sample in samples for medium in sample.media}
        print(f"{len(samples)} samples with {len(media)} media files, {len(faults)} faults")
    return 2 if faults or not samples else 0
