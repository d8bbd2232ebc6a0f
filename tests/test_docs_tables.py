"""The tables of the manual are those of the results: `<!-- table: NAME -->` says which."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaConfig, ViTConfig

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import FinetuneConfig
from autogaze_mllm.finetuning.run import prepare
from autogaze_mllm.gaze.settings import PRESETS
from autogaze_mllm.mllm.families import OWN
from autogaze_mllm.mllm.families.llava.llava import LlavaFamily

from .helpers.families.models import build

ROOT = Path(am.__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table(name: str) -> list[list[str]]:
    """The cells of a table, without its head."""
    found = [
        match[1]
        for page in (ROOT / "docs").glob("*.md")
        for match in re.finditer(rf"<!-- table: {name} -->\n\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"))
    ]
    assert len(found) == 1, name
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()[2:]]


def test_every_table_that_says_so_is_compared():
    named = {
        name
        for page in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"<!-- table: (\w+) -->", page.read_text(encoding="utf-8"))
    }
    tables = {"serve", "gaze_speed", "signvid", "finetune_memory", "gaze_reconstruction", "required_ratio"}
    tables |= {"family_choices", "family_layouts", "family_tokens", "qwen_shapes"}
    tables |= {"presets", "qwen_seconds", "qwen_tokens", "index", "signvid_curve", "signvid_letters"}
    assert named == tables | {
        "real_gaze",
        "small_things",
        "gaze_speed_h100",
        "gaze_profile_h100",
        "latency_h100",
        "question_h100",
    }


def test_what_the_server_does_by_the_number_of_clients():
    found = results("serve_cpu")
    rows = {(row["engine"], row["requests_are"], row["clients"]): row for row in found}
    expected = []
    for engine, kind in dict.fromkeys((row["engine"], row["requests_are"]) for row in found):
        cells = [rows[engine, kind, clients] for clients in (1, 4, 16)]
        told = [f"{cell['requests_per_second']:.1f}; {cell['first_word_median']:.2f} s" for cell in cells]
        expected.append([engine, kind, *told])
    assert table("serve") == expected


def test_what_back_ends_of_index_cost():
    found, names = results("index_cpu"), ("core_seconds", "start_seconds", "videos_per_hour", "load_average")
    assert table("index") == [[row["workers"], *(f"{row[name]:.0f}" for name in names)] for row in found]
    assert all(row["same_bytes"] for row in found)


def test_what_gaze_saves_in_front_of_qwen():
    expected = []
    for row in results("qwen_seconds_cpu"):
        own = "own shape" if row["scales"] == "own" else row["scales"]
        dense = row["dense"]
        spent = [f"{seconds:.1f}" for seconds in (dense["seconds"], row["gaze"], row["forward"], row["times_faster"])]
        expected.append([str(row["side"]), own, str(row["ratio"]), str(dense["tokens"]), str(row["tokens"]), *spent])
    assert table("qwen_seconds") == expected


def test_tokens_of_qwen():
    found: dict[tuple[int, int], list[str]] = {}
    for row in results("qwen_tokens"):
        cells = found.setdefault((row["side"], row["fps"]), [str(row["side"]), str(row["fps"]), str(row["dense"])])
        cells.append(str(row["gazed"]))
    assert table("qwen_tokens") == list(found.values())
    (row,) = results("qwen_memory_cpu")
    page = (ROOT / "docs" / "qwen.md").read_text(encoding="utf-8")
    told = f"A video of {row['frames']} frames of {row['side']} pixels"
    assert told in page and f"{row['tokens']:,} tokens" in page and f"{row['peak_mib']:,} MiB" in page


def results(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def shown(value: float | None, pattern: str = "{:.0f}") -> str:
    return "" if value is None else pattern.format(value)


def per_second(row: dict, name: str = "seconds_per_clip", pattern: str = "{:.0f}") -> str:
    return pattern.format(1 / row[name]) if name in row else ""


def test_gaze_speed_on_an_h100():
    before = {(row["batch"], row["ratio"], row["dtype"]): row for row in results("gaze_speed_h100_masks")}
    expected = []
    for row in results("gaze_speed_h100"):
        kind = (row["batch"], row["ratio"], row["dtype"])
        measured = [per_second(row), f"{row['share_of_matmul_rate']:.1%}", f"{row['peak_mib']:.0f}"]
        rivals = [per_second(before.get(kind, {})), per_second(row, "reference_seconds_per_clip", "{:.1f}")]
        expected.append([*map(str, kind), *measured, *rivals])
    assert table("gaze_speed_h100") == expected


def test_where_gazing_spends_its_time_on_an_h100():
    expected = []
    for row in results("gaze_profile_h100"):
        attention = sum(kernel["milliseconds"] for kernel in row["most"] if "flash" in kernel["kernel"])
        spent = [f"{row['milliseconds']:.1f}", f"{row['device_milliseconds']:.1f}", str(row["kernels"])]
        expected.append([str(row["batch"]), str(row["ratio"]), *spent, f"{attention:.1f}"])
    assert table("gaze_profile_h100") == expected


def test_latency_on_an_h100():
    expected = []
    for row in results("latency_h100"):
        tower, mllm, spent = row["tower"], row["mllm"], row["milliseconds"]
        cells = [f"{row['fps']} x {row['side']}", f"{100 * row['ratio']:.1f} %"]
        cells += [shown(tower["dense"]), shown(tower["gazed"])]
        cells += [shown(spent[name]) for name in ("gaze", "gather", "gazed tower")]
        cells += [shown(tower["speedup"], "{:.1f}x"), shown(mllm["dense"]), shown(mllm["gazed"])]
        expected.append([*cells, shown(mllm["speedup"], "{:.1f}x")])
    assert table("latency_h100") == expected


def test_a_question_on_an_h100():
    expected = []
    for row in results("question_h100"):
        stages = [
            f"{row['stage_seconds'][name]:.1f}" for name in ("decode", "resize", "gaze", "gather", "tower", "llm")
        ]
        counts = [f"{row['patches']:,}", f"{row['visual_tokens']:,}"]
        expected.append([row["gaze"], *counts, f"{row['seconds']:.1f}", *stages, f"{row['peak_gib']:.1f}"])
    assert table("question_h100") == expected


def test_gaze_speed():
    rows = json.loads((RESULTS / "gaze_speed_cpu.json").read_text())["rows"]
    expected = [
        [
            str(row["batch"]),
            row["ratio"],
            f"{row['seconds_per_clip']:.2f}",
            f"{row['share_of_matmul_rate']:.0%}",
            f"{row['peak_mib']:.0f}",
            f"{row['reference_seconds_per_clip']:.1f}",
        ]
        for row in rows
        if row["dtype"] == "fp32"
    ]
    assert table("gaze_speed") == expected
    assert all(row["ids_as_in_reference"] == 1 for row in rows if row["dtype"] == "fp32")


def test_signvid():
    looks = json.loads((RESULTS / "signvid_cpu.json").read_text())["looks"]
    expected = []
    for name in ("gaze", "pixel-diff-raw", "random", "whole-448", "all"):
        look = looks[name]
        accuracy, kinds = look["accuracy"], look["kinds"]
        low, high = 100 * accuracy["low"], 100 * accuracy["high"]
        expected.append(
            [
                f"{100 * accuracy['value']:.1f} % ({low:.0f} to {high:.0f})",
                " / ".join(f"{100 * kinds[kind]['value']:.0f} %" for kind in ("read", "first", "count")),
                f"{100 * look['unparsed']:.0f} %",
                f"{look['tokens']:.0f}",
                f"{look['first']:.1f}",
                f"{look['further']:.2f}",
                f"{look['peak']:.2f}",
            ]
        )
    assert [row[1:] for row in table("signvid")] == expected


def test_signvid_by_letters():
    looks = json.loads((RESULTS / "signvid_letters_cpu.json").read_text())["looks"]
    expected = []
    for name in ("pixel-diff", "gaze", "gaze-alone", "whole-448"):
        look = looks[name]
        accuracy, kinds = look["accuracy"], look["kinds"]
        expected.append(
            [
                f"{100 * accuracy['value']:.1f} % ({100 * accuracy['low']:.0f} to {100 * accuracy['high']:.0f})",
                f"{100 * look['strict']['value']:.1f} %",
                " / ".join(f"{100 * kinds[kind]['value']:.0f} %" for kind in ("read", "first", "count")),
                f"{100 * look['unparsed']:.0f} %",
                f"{look['tokens']:.0f}",
                f"{look['first']:.1f}",
            ]
        )
    assert [row[1:] for row in table("signvid_letters")] == expected


def test_signvid_curve():
    result = json.loads((RESULTS / "signvid_curve.json").read_text())
    seconds = result["seconds"]["clean"]["looks"]
    names = {"all": "every patch", **{f"whole-{n}": f"the whole frame at {n} pixels" for n in (448, 224)}}
    expected = []
    for look in result["looks"]:
        cells = [names.get(look, look)]
        for condition in ("clean", "noisy"):
            row = result["conditions"][condition][look]
            accuracy, kinds = row["accuracy"], row["kinds"]
            assert accuracy["n"] == 510
            value, low, high = (100 * accuracy[name] for name in ("value", "low", "high"))
            cells.append(f"{value:.1f} % ({low:.0f} to {high:.0f})")
            cells.append(" / ".join(f"{100 * kinds[kind]['value']:.0f}" for kind in ("read", "first", "count")))
            cells.append(f"{row['tokens']:.0f}")
        expected.append([*cells, f"{seconds[look]['first']:.1f}" if look in seconds else ""])
    assert table("signvid_curve") == expected


def test_gaze_reconstruction():
    expected = []
    for kind in ("generated", "real"):
        with (RESULTS / "gaze_reconstruction" / f"{kind}_summary.csv").open(newline="") as file:
            rows = {row["setting"]: row for row in csv.DictReader(file) if row["selector"] == "bundled"}
        for setting in ("task_0.20", "task_0.40", "ratio_0.05"):
            row = rows[setting]
            others = [f"{float(row[f'patches_over_{other}']):.2f}" for other in ("random", "greedy", "pixel_diff_raw")]
            measured = row["measured_over_asked"]
            kept = f"{100 * float(row['actual_gaze_ratio']):.1f} %"
            expected.append([kept, *others, f"{float(measured):.2f}" if measured else ""])
    assert [row[2:] for row in table("gaze_reconstruction")] == expected


def test_required_ratio():
    needed = json.loads((RESULTS / "required_ratio_cpu.json").read_text(encoding="utf-8"))["needed"]
    expected = []
    for fps, side in dict.fromkeys((line["fps"], line["side"]) for line in needed):
        lines = {line["selector"]: line for line in needed if (line["fps"], line["side"]) == (fps, side)}
        selectors = ("bundled", "pixel-diff-raw", "greedy")
        shares = [lines[name][kind] for kind in ("real", "generated") for name in selectors]
        expected.append([str(fps), str(side), *("" if share is None else f"{100 * share:.2g}" for share in shares)])
    assert table("required_ratio") == expected


def test_real_gaze():
    names = {"task_0.20": "loss 0.2", "task_0.40": "loss 0.4", "ratio_0.05": "ratio 0.05", "ratio_0.10": "ratio 0.10"}
    with (RESULTS / "real_gaze" / "validation_summary.csv").open(newline="") as file:
        rows = {(row["condition"], row["selector"], row["setting"]): row for row in csv.DictReader(file)}
    expected = []
    for condition in ("clean", "noise", "h264", "shake", "low-light"):
        for setting, name in names.items():
            guided, alone, greedy = (
                {k: f"{float(v):.2f}" if v else "" for k, v in rows[condition, which, setting].items() if k in CELLS}
                for which in ("bundled", "alone", "greedy")
            )
            interval = f"({guided['over_greedy_low']} to {guided['over_greedy_high']})"
            over_greedy = [alone["over_greedy"], f"{guided['over_greedy']} {interval}", greedy["over_greedy"]]
            others = [guided["over_pixel_diff"], guided["over_pixel_diff_raw"]]
            reached = [alone["reached_over_asked"], guided["reached_over_asked"]]
            expected.append([condition, name, *over_greedy, *others, *reached])
    assert table("real_gaze") == expected


CELLS = (
    "over_greedy",
    "over_greedy_low",
    "over_greedy_high",
    "over_pixel_diff",
    "over_pixel_diff_raw",
    "reached_over_asked",
)


def test_small_things():
    with (RESULTS / "small_things" / "summary.csv").open(newline="") as file:
        rows = {(row["condition"], float(row["ratio"]), row["selector"]): row for row in csv.DictReader(file)}
    expected = []
    for kind in dict.fromkeys((condition, ratio) for condition, ratio, _ in rows):
        selectors = ("bundled", "alone", "greedy", "pixel-diff", "pixel-diff-raw", "random")
        shares = [float(rows[(*kind, name)][thing]) for thing in ("print", "ball") for name in selectors]
        expected.append([kind[0], f"{kind[1]:g}", *(f"{100 * share:.0f} %" for share in shares)])
    assert table("small_things") == expected


def test_finetune_memory(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune_memory.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "finetune_memory.py"), run_name="__main__")
    assert ended.value.code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert table("finetune_memory") == [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_presets():
    expected = []
    for name, one in PRESETS.items():
        first, *rest = one.ratio if isinstance(one.ratio, tuple) else (one.ratio, one.ratio)
        assert len(set(rest)) == 1
        numbers = [str(value) for value in (one.frames, one.max_tiles, f"{first:g}, {rest[0]:g}", one.thumbnails)]
        expected.append([f"`{name}`", *numbers])
    assert [row[:-1] for row in table("presets")] == expected


@pytest.fixture(scope="module")
def families() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "families.py"))


def test_families_are_what_their_adapters_answer(families: dict[str, Any]):
    rows = [families["row_of"](published) for published in families["PUBLISHED"]]
    assert {row.family.model_type for row in rows} == {family.model_type for family in OWN}
    for name, (page, make) in families["TABLES"].items():
        found = families["marked"](name).search((ROOT / page).read_text(encoding="utf-8"))
        assert found is not None and found[0] == make(rows), f"python benchmarks/families.py --write: {name}"


def refusals() -> list[str]:
    """The last column of the table of what a family cannot do."""
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = text.partition("| asked for |")[2].partition("\n\n")[0].splitlines()[2:]
    return [row.strip("|").split("|")[2].strip() for row in rows]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(am.InputError) as error:
        call()
    return str(error.value)


def test_what_a_family_cannot_do_is_refused_in_the_line_that_is_shown(clip: Path):
    def wrapped(name: str, **options: Any) -> am.GazedModel:
        base, preprocessing = build(name)
        return am.wrap(base, "all", processor=preprocessing, frames=2, cache=False, **options)

    vit = LlavaConfig(vision_config=ViTConfig().to_dict())
    said = [
        refused(lambda: wrapped("qwen3_vl", thumbnails=1, thumbnail_ratio=0.5).gaze_video(clip)),
        refused(lambda: wrapped("qwen3_vl", frame_independent=False)),
        refused(lambda: wrapped("qwen3_vl", compile=True)),
        refused(lambda: wrapped("video_llava", max_tiles=2).gaze_video(clip)),
        refused(lambda: wrapped("paligemma").encode_video(clip, share_prompt=True)),
        refused(lambda: prepare(wrapped("qwen3_vl"), FinetuneConfig(data=("none",), output="none", packing=True))),
        refused(lambda: LlavaFamily.check_tower(vit)),
    ]
    for shown, real in zip(refusals(), said, strict=True):
        assert re.fullmatch(re.escape(shown).replace(r"clip_vision_model,\ \.\.\.", ".*"), real), (shown, real)
