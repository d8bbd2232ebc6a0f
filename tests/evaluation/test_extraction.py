"""From replies to letters: our rule on the cases where common ones fail, and the benchmarks' rules as they are."""

from __future__ import annotations

import pytest

from autogaze_mllm.evaluation.benchmarks import BENCHMARKS, Question
from autogaze_mllm.evaluation.benchmarks.hlvid import options_within
from autogaze_mllm.evaluation.extraction import named_option, strict

STRICT = [
    # Cases on which common extractors fail.
    ("The answer is B because A is wrong", "B"),
    ("The answer is B. Because the Dog runs", "B"),
    ("Answer: B\n\nExplanation: A cat", "B"),
    ("Based on the video, the answer is (D)", "D"),
    ("Best option: C", "C"),
    ("b", "B"),
    ("A man is walking", None),
    ("Blue", None),
    ("(C) the red car", "C"),
    ("C. the red car", "C"),
    ("**D**", "D"),
    # More ways to say it.
    ("", None),
    ("   ", None),
    ("a.", "A"),
    ("B)", "B"),
    ("[c]", "C"),
    ('"D"', "D"),
    ("C: red", "C"),
    ("The correct answer is option (C).", "C"),
    ("The correct option is: b", "B"),
    ("The answer is **C**, since it moves", "C"),
    ("A is correct", "A"),
    ("A because it moves", "A"),
    ("Let me think.\nB", "B"),
    ("The man picks up the cup, so (B).", "B"),
    ("the answer is D the dog", "D"),
    # No commitment, or several.
    ("The answer is A man", None),
    ("Option A is wrong", None),
    ("A and B are right", None),
    ("A, B", None),
    ("(B) or (C)", None),
    ("The answer is A. No, the answer is B", None),
    ("E", None),  # not one of the options
    ("Dogs bark", None),
    ("C3PO", None),
]


@pytest.mark.parametrize(("reply", "letter"), STRICT)
def test_strict(reply, letter):
    assert strict(reply, "ABCD") == letter


def test_strict_knows_the_options_of_the_question():
    assert strict("E", "ABCDE") == "E" and strict("D", "ABC") is None and strict("The answer is F", "ABCDEF") == "F"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("the red ball", "A"),
        (" The  Red ball. ", "A"),
        ("**blue box**", "B"),
        ("A ball and a box. Answer: blue box", "B"),
        ("The answer is the red ball, not the answer: 3", "D"),
        ("the red ball or blue box", None),
        ("the red", None),
        ("", None),
        ("green", None),  # of two options
    ],
)
def test_the_words_of_one_option_are_its_letter(reply, letter):
    assert named_option(reply, "ABCDEF", ("A. the red ball", "(B) blue box", "C. Green", "3", "E. green.")) == letter


def test_hlvid_tells_its_options_where_they_stand_in_lines():
    assert options_within("Which?\nA. one\nB. A. two\nC. three \nD. 4\nPlease.") == ("one", "A. two", "three", "4")
    assert options_within("Which?\nA. one\nB. two\nC. three\nPlease.") == ()
    assert options_within("Which of A. B. C. D. is it?") == ()


QUESTION = Question(
    "1", "v", "?", "ABCDE", "A", ("A. the red ball", "B. the blue box", "C. a", "D. it rains.", "E. no")
)
PLAIN = ("the red ball", "the blue box", "a", "it rains", "no")

# What each benchmark's own rule reads, mistakes included.
OFFICIAL = [
    ("hlvid", "The answer is (d).", "D"),
    ("hlvid", "A man is walking, so B", "A"),
    ("hlvid", "Blue", None),
    ("videomme", "The best answer is C", "C"),
    ("videomme", "Blue", "B"),
    ("videomme", "b", None),
    ("videomme", "The best option is B", "B"),
    ("videomme", "Best Answer B", "B"),  # capitals in the words count: "Best" begins with B
    ("videomme", "Certainly: A", "C"),
    ("mvbench", "(B) the blue box", "B"),
    ("mvbench", "c. it rains", "C"),
    ("mvbench", "It is a red ball", "A"),  # the article
    ("mvbench", "no", None),
    ("nextqa", "(B)", "B"),
    ("nextqa", "The answer is B", "B"),
    ("nextqa", "(A) or rather (C)", "C"),  # the last one
    ("nextqa", "The man throws the red ball to her", "C"),  # option C is "a", which stands in "man"
    ("nextqa", "the red ball", None),  # up to five words are not compared with the options
    ("nextqa", "", None),
    ("longvideobench", "The best option is E", "E"),
    ("longvideobench", "Every time", "E"),
    ("longvideobench", "no", None),
    ("egoschema", "B", "B"),
    ("egoschema", "D. it rains.", "D"),
    ("egoschema", "the red ball.", "A"),
    ("egoschema", "B.", None),
    ("egoschema", "The answer is B", None),
    ("mlvu", "B) the blue box", "B"),
    ("mlvu", "B", "B"),
    ("mlvu", "The answer is (C) a", "C"),
    ("mlvu", "The answer is C", None),
    ("mlvu", ")", None),
]


@pytest.mark.parametrize(("name", "reply", "letter"), OFFICIAL)
def test_official(name, reply, letter):
    question = QUESTION
    if name == "nextqa":
        question = Question("1", "v", "?", "ABCDE", "A", PLAIN)
    assert BENCHMARKS[name](".").official(reply, question) == letter
