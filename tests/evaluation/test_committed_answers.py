"""The committed answer of replies as models give them: thoughts, marks, languages. None is better than a wrong one."""

# ruff: noqa: RUF001  Cyrillic letters that look like Latin ones are meant

from __future__ import annotations

import time

import pytest

from autogaze_mllm.evaluation.extraction import named_option, strict

THOUGHTS = [
    ("<think>At first I thought the answer is B.</think>\n<answer>C</answer>", "C"),
    ("<think>Option (B) is blue.</think> C", "C"),
    ("<think>The correct option is A", None),  # cut off
    ("<think>\nIt could be A.\nOr (B).\n</think>\n\nD", "D"),
    ("The van is parked, so the answer is A.\n</think>\nB", "B"),  # opened by the template
    ("<thinking>the answer is D</thinking>The answer is A.", "A"),
    ("<THINK>D</THINK> (c)", "C"),
    ("<reasoning>Answer: A</reasoning>\nAnswer: B", "B"),
    ("◁think▷The sign is red, answer: A◁/think▷The answer is D", "D"),
    ("◁think▷The sign is red, so the answer is A", None),
    ("[THINK]Is it (A)? No.[/THINK]B", "B"),
    ("<|begin_of_thought|>(A)<|end_of_thought|><|begin_of_solution|>The answer is \\boxed{D}<|end_of_solution|>", "D"),
    ("<|channel|>analysis<|message|>Maybe A.<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>", "B"),
    ("<|channel|>analysis<|message|>The answer is A", None),
    ("<think>one <think>two: A</think> B</think>C", "C"),
    ("<think></think>D", "D"),
    ("<think>A</think><think>B", None),
    ("<think>the answer is A</think>", None),
]
MARKS = [
    ("<answer>C</answer>", "C"),
    ("<answer> (b) </answer>", "B"),
    ("<answer>C. the red car</answer>", "C"),
    ("<answer>The correct option is D.</answer>", "D"),
    ("A man runs. <answer>C", "C"),  # cut off behind the letter
    ("<answer>A</answer> or rather <answer>B</answer>", None),
    ("Write it as <answer></answer>. <answer>B</answer>", "B"),
    ("<answer>the red car</answer> The answer is B", None),
    ("<final_answer>D</final_answer>", "D"),
    ("<option>B</option>", "B"),
    ("The final answer is: $\\boxed{C}$", "C"),
    ("\\boxed{\\text{D}}", "D"),
    ("$$\\boxed{\\textbf{(B)}}$$", "B"),
    ("\\boxed{A. the red ball}", "A"),
    ("So 3 + 4 = \\boxed{7}, which is \\boxed{B}.", "B"),
    ("\\boxed{A} hence \\boxed{B}", None),
    ("\\boxed{C", "C"),
    ("<|begin_of_box|>C<|end_of_box|>", "C"),
    ('{"answer": "C"}', "C"),
    ('```json\n{"reasoning": "The answer is B, or so it seems.", "answer": "D"}\n```', "D"),
    ("{'choice': 'b'}", "B"),
    ('{"final_answer": ["A"]}', "A"),
    ('{"answer": "C. It rains", "confidence": 0.4}', "C"),
    ('{"answer": "A", "correct_option": "B"}', None),
    ('{"answer": 2}', None),
    ("It is 12 o'clock.\n#### B", "B"),
]
SAID = [
    ("**Answer:** **C**", "C"),
    ("__C__", "C"),
    ("**(D)** the man leaves", "D"),
    ("### Answer\nB", "B"),
    ("| Answer | C |", "C"),
    ("Answer → B", "B"),
    ("`A`", "A"),
    ("'C'", "C"),
    ('The answer is "C".', "C"),
    ("{C}", "C"),
    ("I would choose option C.", "C"),
    ("I'll go with (B).", "B"),
    ("We pick D because it rains.", "D"),
    ("Option C is correct.", "C"),
    ("(D) is the best answer", "D"),
    ("The most likely answer is D: he left.", "D"),
    ("The answer would be (A).", "A"),
    ("At first the answer is B. Final answer: C", "C"),
    ("He puts it down. Therefore, C.", "C"),
    ("Let me look again.\n\n**D**", "D"),
    ("The answer is $B$.", "B"),
    ("\\(C\\)", "C"),
    ("✅ C", "C"),
    ("Ｃ", "C"),
]
LANGUAGES = [
    ("答案是C，因为他离开了。", "C"),
    ("答案：B", "B"),
    ("正确答案为（D）。", "D"),
    ("因此选C", "C"),
    ("我选择选项 A。", "A"),
    ("正解はBです。", "B"),
    ("答え：【C】", "C"),
    ("정답은 D입니다.", "D"),
    ("답: A", "A"),
    ("Правильный ответ: C", "C"),
    ("Ответ — B.", "B"),
    ("Die richtige Antwort ist C, weil er geht.", "C"),
    ("Antwort: (B)", "B"),
    ("La bonne réponse est la D.", "D"),
    ("Réponse : A", "A"),
    ("La respuesta correcta es la opción B.", "B"),
    ("Respuesta: C", "C"),
    ("A resposta correta é a letra D.", "D"),
    ("La risposta corretta è C.", "C"),
    ("Het juiste antwoord is B.", "B"),
    ("Prawidłowa odpowiedź to C.", "C"),
    ("Doğru cevap: D", "D"),
    ("Jawaban yang benar adalah C.", "C"),
    ("Đáp án đúng là B.", "B"),
    ("الإجابة الصحيحة هي C", "C"),
    ("सही उत्तर B है", "B"),
    ("คำตอบคือ D", "D"),
    ("C选项是正确的。", "C"),
    ("C가 정답입니다.", "C"),
]
NONE = [
    "Option (B) is wrong.",
    "(B) is not correct.",
    "It is not (C).",
    "The answer is not B.",
    "If the answer is B, the man must have left.",
    "I doubt whether the answer is C.",
    "Saying that the answer is B would be wrong.",
    "答案不是B",
    "B不对",
    "Die Antwort ist nicht (C).",
    "Die Antwort ist B oder C.",
    "La respuesta es A o B.",
    "答案是A或B",
    "A. a ball\nB. a box\nC. a cup\nD. a dog",
    "A: the ball; B: the box; C: the cup",
    "E.g. the dog runs",
    "A.m. or p.m.?",
    "The answer is a",  # cut off: an article, or a letter
    "The answer is a man",
    "The answers are B and C",
    "B/C",
    "Ответ: В",  # a letter of another alphabet
    "I cannot tell from the video.",
    "Both (A) and (D).",
    "(A) shows a dog. The correct one is clearly D.",
    "A. No, wait. B.",
    "C选项不正确。",
    "La respuesta es A la derecha",
    "Answer: C or D?",
    "None of the above",
]


@pytest.mark.parametrize(("reply", "letter"), [*THOUGHTS, *MARKS, *SAID, *LANGUAGES, *((one, None) for one in NONE)])
def test_the_letter_that_a_reply_commits_to(reply, letter):
    assert strict(reply, "ABCDE") == letter


def test_options_by_their_words_are_read_where_the_answer_is():
    options = ("A. the red ball", "B. the blue box", "C. the cup", "D. it rains")
    for reply, letter in (
        ("<think>It is the red ball.</think>\nthe blue box", "B"),
        ("<answer>the cup</answer>", "C"),
        ("\\boxed{\\text{it rains}}", "D"),
        ('{"answer": "the red ball"}', "A"),
        ("<think>the red ball", None),
        ("<answer>the cup</answer><answer>it rains</answer>", None),
    ):
        assert named_option(reply, "ABCD", options) == letter


def test_long_replies_take_no_time():
    """Nothing in the patterns grows out of hand on text that almost fits."""
    start = time.monotonic()
    for reply in (
        "(A" * 20_000,
        "answer " * 20_000,
        "<think>" * 20_000,
        "\\boxed{" * 3_000,
        "A, " * 20_000,
        " " * 50_000,
    ):
        strict(reply, "ABCDE")
    assert time.monotonic() - start < 20
