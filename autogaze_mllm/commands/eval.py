"""`autogaze-mllm eval`: score a model on a video benchmark, go on with a run, report it, compare two."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError, listed
from ..common.storage.json_text import to_json
from ..evaluation.config import EvalConfig
from .arguments.config_file import CONFIG, write_config
from .arguments.options import (
    ONLY_SIGNS,
    add_settings,
    cache_options,
    chosen_settings,
    gaze_options,
    load_model,
    quiet,
    values_of,
)
from .arguments.revisions import revision_option

if TYPE_CHECKING:  # the verbs import what they need where they need it, so that --help answers at once
    from ..common.compute.distributed import Shard
    from ..evaluation.benchmarks import Benchmark, Question
    from ..evaluation.responders import Responder, Variant

NAMES = ("hlvid", "videomme", "mvbench", "nextqa", "longvideobench", "egoschema", "mlvu")
MISSING_SHOWN = 5


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("eval", help="score a model on a video benchmark, compare two runs")
    actions = parser.add_subparsers(required=True, metavar="BENCHMARK")
    for name in NAMES:
        _add_benchmark(actions.add_parser(name, help=f"run {name}"), name)
    compare = actions.add_parser("compare", help="compare two runs on the questions that both were asked")
    compare.add_argument("first", metavar="RUN_A")
    compare.add_argument("second", metavar="RUN_B")
    compare.add_argument("--json", action="store_true", help="print json")
    compare.set_defaults(run=run_compare)
    report = actions.add_parser("report", help="write the reports of a finished run again")
    report.add_argument("folder", metavar="RUN")
    report.add_argument("--json", action="store_true", help="print json")
    report.set_defaults(run=run_report)


def _add_benchmark(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--model",
        help="hub id or folder of the base model (default: the bundled one, which reads SignVid's signs), or "
        "scripted:right, scripted:wrong, scripted:nonsense, which look up the answers to check the harness",
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="FOLDER", help="the data set as published (default: fetched from the hub)")
    data.add_argument(
        "--made-up", metavar="FOLDER", help="write a small made-up data set there, unless there is one, and use it"
    )
    revision_option(
        parser, "a commit, tag or branch of the data set on the hub, or of a model there", "[MODEL=]REVISION"
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run: answers and reports")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--retry-failed", action="store_true", help="with --resume: try unreadable videos again")
    add_settings(parser, EvalConfig)
    parser.add_argument(
        "--sweep", metavar="GRID", help='try a grid of settings, for example "gaze=pixel-diff,random; ratio=0.1,0.25"'
    )
    cache_options(parser, "do not keep or reuse what was seen of the videos")
    gaze_options(parser, "default: nvidia/AutoGaze with --model, otherwise pixel-diff", revision=False)
    parser.set_defaults(run=run_benchmark, benchmark=name)


def run_benchmark(arguments: argparse.Namespace) -> int:
    quiet()
    config = _checked(arguments)
    from ..common.compute.distributed import Shard
    from ..common.storage.locks import run_lock

    shard = Shard.from_environment()
    out = Path(arguments.out)  # where there is a run, who else is at it is told before anything large is read
    with run_lock(out, f"-{shard.rank:05}", shard.world) if out.is_dir() else nullcontext():
        return _run(arguments, config, shard)


def _run(arguments: argparse.Namespace, config: EvalConfig, shard: Shard) -> int:
    from ..evaluation.run_folder import Run
    from ..evaluation.runner import Job, Runner

    benchmark, commit = _benchmark(arguments, config)
    questions = benchmark.questions()[: config.limit]
    _check_videos(benchmark, questions, shard)
    answerer, variants = _answerer(arguments, config.seed, shard)
    max_new_tokens = config.max_new_tokens or benchmark.max_new_tokens
    settings = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "subtitles": benchmark.subtitles,
        "prompt_version": benchmark.prompt_version,
        "data": benchmark.data_version(),
        "data_commit": commit,
        "made_up": arguments.made_up is not None,
        "limit": config.limit,
        "max_new_tokens": max_new_tokens,
        "extractors": ["official", "strict"],
        "seed": config.seed,
        "model": answerer.facts(),
    }
    jobs = []
    for variant in variants:
        facts = {**settings, "seen": answerer.variant_facts(variant)}
        folder, ids = Path(arguments.out, variant.name), [question.id for question in questions]
        run = Run.open(folder, facts, ids, _environment(), resume=arguments.resume, shard=shard)
        jobs.append(Job(run, variant))
    if shard.rank == 0:
        write_config(arguments, Path(arguments.out, CONFIG))
    runner = Runner(
        benchmark,
        questions,
        answerer,
        jobs,
        max_new_tokens=max_new_tokens,
        shard=shard,
        retry_failed=arguments.retry_failed,
        progress=not arguments.json,
    )
    runner.run()
    return _finish(arguments, jobs) if shard.rank == 0 else 0


def _checked(arguments: argparse.Namespace) -> EvalConfig:
    config = EvalConfig(**values_of(arguments, EvalConfig))
    if arguments.index is not None and arguments.sweep is not None:
        raise InputError("--sweep looks at the videos in several ways, anew: leave --index out")
    if arguments.retry_failed and not arguments.resume:
        raise InputError("--retry-failed goes with --resume")
    return config


def _benchmark(arguments: argparse.Namespace, config: EvalConfig) -> tuple[Benchmark, str | None]:
    """The benchmark, and its commit where it comes from the hub. A revision of no model is that of the data set; those
    of models are left to `load_model`."""
    revision = next((text for text in arguments.revision or () if "=" not in text), None)
    arguments.revision = [text for text in arguments.revision or () if "=" in text]
    if revision is not None and (arguments.data or arguments.made_up):
        raise InputError(f"--revision {revision}: is of the data set on the hub, which another one takes the place of")
    from ..evaluation.benchmarks import BENCHMARKS

    kind, options = BENCHMARKS[arguments.benchmark], (config.split, config.subtitles)
    kind(Path(), *options)  # refused before anything is fetched
    if arguments.made_up is not None:
        from ..evaluation.benchmarks.synthetic import ensure_made_up

        return kind(ensure_made_up(arguments.benchmark, arguments.made_up), *options), None
    if arguments.data is not None:
        return kind(Path(arguments.data), *options), None
    from ..evaluation.data.hub import fetch

    folder, commit = fetch(kind, config.split, revision)
    return kind(folder, *options), commit


def _check_videos(benchmark: Benchmark, questions: list[Question], shard: Shard) -> None:
    """Says at once what is missing; when everything is, the folder is the wrong one."""
    paths = [benchmark.video_path(video) for video in dict.fromkeys(question.video for question in questions)]
    missing = [str(path) for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        raise InputError(f"none of the {len(paths)} videos is in {benchmark.folder}; {missing[0]} was expected")
    if missing and shard.rank == 0:
        shown = listed(missing, MISSING_SHOWN)
        print(f"{len(missing)} of {len(paths)} videos are missing and will count as wrong: {shown}", file=sys.stderr)


def _answerer(arguments: argparse.Namespace, seed: int, shard: Shard) -> tuple[Responder, list[Variant]]:
    """What answers, and the ways in which it sees the videos."""
    import torch

    from ..evaluation.responders import SCRIPTED, ModelAnswerer, ScriptedAnswerer, Variant
    from ..evaluation.sweep import parse_sweep, sweep_variants
    from ..gaze.selectors.base import selector_name
    from ..gaze.selectors.baselines import AllSelector, RandomSelector
    from ..mllm.wrap import DEFAULT_GAZE

    points = None if arguments.sweep is None else parse_sweep(arguments.sweep)
    torch.manual_seed(seed)
    if (arguments.model or "").startswith(SCRIPTED):
        if points is not None:
            raise InputError("a script does not look at the videos, so there is nothing to sweep")
        if arguments.revision:
            raise InputError("--revision: a script is no model of the hub, so it has no revisions")
        answerer = ScriptedAnswerer(arguments.model.removeprefix(SCRIPTED))
        return answerer, [Variant(AllSelector(), chosen_settings(arguments), "none")]
    if arguments.device is None and shard.world > 1 and torch.cuda.is_available():
        arguments.device = f"cuda:{shard.local_rank}"
    model = load_model(arguments)
    if isinstance(model.gaze, RandomSelector):
        model.gaze = RandomSelector(seed)
    gaze = arguments.gaze or (DEFAULT_GAZE if arguments.model else selector_name(model.gaze))
    if points is None:
        variants = [Variant(model.gaze, model.settings, gaze)]
    else:
        target = {"device": model.device, "dtype": model.dtype}
        variants = sweep_variants(points, model.gaze, gaze, model.settings, seed, **target)
    return ModelAnswerer(model, arguments.model), variants


def _environment() -> dict[str, Any]:
    from ..common.environment import describe

    found = describe()
    return {name: found[name] for name in ("autogaze_mllm", "python", "packages", "devices")}


def _finish(arguments: argparse.Namespace, jobs: list[Any]) -> int:
    """Writes and prints the reports. -> 1 when a video could not be read."""
    from ..evaluation.reports.report import write_report
    from ..evaluation.sweep import write_sweep

    reports = [write_report(job.run) for job in jobs]
    result = reports[0]
    if arguments.sweep is not None:
        result = write_sweep(Path(arguments.out), [job.variant for job in jobs], reports)
    if arguments.json:
        print(to_json(result))
    else:
        for job, report in zip(jobs, reports, strict=True):
            _print_report(report, job.variant.name)
        print(f"reports: {Path(arguments.out) / 'report.html'}, .md, .json")
        if arguments.model is None:
            print(f"\nnote: {ONLY_SIGNS}")
    failed = sum(failure["questions"] for report in reports for failure in report["failures"])
    if failed:
        print(
            f"autogaze-mllm: {failed} answers are failures because their videos could not be read; they count as wrong",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _print_report(report: dict[str, Any], name: str) -> None:
    from ..evaluation.reports.report import pace, percent

    scores = report["scores"]
    title = f"{report['title']}, {name}" if name else report["title"]
    print(f"{title}: n = {scores['n']}, {scores['videos']} videos")
    for rule in ("official", "strict"):
        found = scores[rule]
        print(f"  {rule:<9} {percent(found['score'])}, {found['unparsed']} unparsed")
    if name:  # of a sweep, where the rest stands in each variant's report
        return
    if report["published"]:
        print(f"  published {report['published']['gazed']} % (NVILA-8B-HD-Video)")
    for line in report["differences"]:
        print(f"  - {line}")
    if report["settings"]["limit"] and report["seconds"]:
        print(f"  at this pace all {report['published_size']} questions take {pace(report)}")


def run_report(arguments: argparse.Namespace) -> int:
    quiet()
    from ..evaluation.reports.report import write_report
    from ..evaluation.run_folder import read_run

    report = write_report(read_run(arguments.folder))
    if arguments.json:
        print(to_json(report))
    else:
        _print_report(report, "")
    return 1 if report["failures"] else 0


def run_compare(arguments: argparse.Namespace) -> int:
    from ..evaluation.reports.compare import compare_runs, table_of

    result = compare_runs(arguments.first, arguments.second)
    print(to_json(result) if arguments.json else table_of(result))
    return 0
