"""The published prompts, character for character, from rows in the published layouts."""

from __future__ import annotations

import pytest

import autogaze_mllm as am
from autogaze_mllm.evaluation.benchmarks import BENCHMARKS

from ..helpers.files.eval_data import LAYOUTS, LONGVIDEOBENCH, write_json, write_sample

PROMPTS = {
    "hlvid": (
        "Question: What does the sign say?\nA. STOP\nB. GO\nC. SLOW\nD. YIELD\nAnswer with the letter.",
        "B",
        {"category": "driving"},
    ),
    "videomme": (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nHow many candles are lit?\nA. One.\nB. Two.\nC. Three.\n"
        "D. Four.\nThe best answer is:",
        "C",
        {
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "task_type": "Counting Problem",
        },
    ),
    "mvbench": (
        "Question: What is the action?\nOption:\n(A) Not sure\n(B) Scattering\n(C) Piling\n"
        "Only give the best option.\n",
        "C",
        {"task": "action_antonym"},
    ),
    "nextqa": (
        "how do the two man play the instrument\nA. roll the handle\nB. tap their feet\nC. strum the string\n"
        "D. hit with sticks\nE. pat with hand",
        "D",
        {"kind": "causal", "type": "CH"},
    ),
    "longvideobench": (
        "What changes on the desk?\nA. a cup\nB. a pen\nC. a lamp\n"
        "Answer with the option's letter from the given choices directly.",
        "B",
        {"duration_group": "600", "question_category": "TOS"},
    ),
    "egoschema": (
        "What is C doing?\nA. C cooks.\nB. C cleans.\nC. C reads.\nD. C knits.\nE. C sings.\n"
        "Answer with the option's letter from the given choices directly.",
        "E",
        {},
    ),
    "mlvu": (
        "What colour is the car?\n(A) red\n(B) blue\n(C) white\n(D) black\nOnly give the best option.\nBest option: (",
        "D",
        {"task_type": "plotQA"},
    ),
}
NEW_TOKENS = {"longvideobench": 32}
ASKED_ABOUT_BOTH = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. Respond "
    "with only the letter (A, B, C, or D) of the correct option.\nHow many candles are lit?\nA. One.\nB. Two.\n"
    "C. Three.\nD. Four.\nThe best answer is:"
)
SRT = """1
00:00:01,500 --> 00:00:03,000
<font color="white" size=".72c">Two lines</font>
<font color="white" size=".72c">of text.</font>

2
00:00:00,000 --> 00:00:01,000
Earlier.

3
00:01:00,000 --> 00:01:01,000
Between the frames.

4
00:02:00,000 --> 00:02:02,500
At the end.
"""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompt_answer_and_video_of_a_published_row(name, tmp_path):
    write_sample(name, tmp_path)
    benchmark = BENCHMARKS[name](tmp_path)
    (question,) = benchmark.questions()
    prompt, answer, categories = PROMPTS[name]
    assert benchmark.prompt(question, [0.0, 1.0]) == prompt
    assert (question.answer, question.categories) == (answer, categories)
    video = tmp_path / LAYOUTS[name][3]
    video.parent.mkdir(exist_ok=True, parents=True)
    video.touch()
    assert benchmark.video_path(question.video) == video
    assert benchmark.max_new_tokens == NEW_TOKENS.get(name, 16)


def test_subtitles_are_those_of_the_sampled_frames_in_time_order(tmp_path):
    write_sample("videomme", tmp_path)
    (tmp_path / "subtitle").mkdir()
    (tmp_path / "subtitle" / "fFjv93ACGo8.srt").write_text(SRT, encoding="utf-8-sig")
    benchmark = BENCHMARKS["videomme"](tmp_path, subtitles=True)
    (question,) = benchmark.questions()
    shown = benchmark.prompt(question, [0.5, 2.0, 2.5, 120.0])
    listed = "This video's subtitles are listed below:\nEarlier.\nTwo lines of text.\nAt the end.\n"
    assert shown == listed + ASKED_ABOUT_BOTH
    assert benchmark.prompt(question, [1.0]) == PROMPTS["videomme"][0]  # the first cue has just ended


def test_a_video_without_subtitles_is_asked_about_without(tmp_path):
    write_sample("videomme", tmp_path)
    (tmp_path / "subtitle").mkdir()
    benchmark = BENCHMARKS["videomme"](tmp_path, subtitles=True)
    (question,) = benchmark.questions()
    assert benchmark.prompt(question, [0.5]) == PROMPTS["videomme"][0]


def test_longvideobench_is_read_from_its_json_file_too(tmp_path):
    row = {name: value for name, value in LONGVIDEOBENCH[0].items() if not name.startswith("option")}
    write_json(tmp_path / "lvb_val.json", [{**row, "candidates": ["a cup", "a pen", "a lamp"]}])
    benchmark = BENCHMARKS["longvideobench"](tmp_path)
    (question,) = benchmark.questions()
    assert benchmark.prompt(question, []) == PROMPTS["longvideobench"][0] and question.answer == "B"


def test_egoschema_withholds_the_answers_of_the_full_set(tmp_path):
    path = write_sample("egoschema", tmp_path)
    (tmp_path / "GENERATION").mkdir()
    path.rename(tmp_path / "GENERATION" / path.name)
    (question,) = BENCHMARKS["egoschema"](tmp_path, "full").questions()
    assert question.answer is None


def test_what_a_benchmark_does_not_have_is_refused(tmp_path):
    with pytest.raises(am.InputError, match=r"hlvid has no split 'val'; it has: test"):
        BENCHMARKS["hlvid"](tmp_path, "val")
    with pytest.raises(am.InputError, match="hlvid is not asked with subtitles"):
        BENCHMARKS["hlvid"](tmp_path, subtitles=True)
