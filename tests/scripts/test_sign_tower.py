"""Sheets full of signs, and the tower and projector that learn to read on them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import autogaze_mllm as am
from autogaze_mllm.signvid import sheets
from autogaze_mllm.signvid.legible import SHIFT, read_sign
from autogaze_mllm.signvid.sheets import NOTHING, UNKNOWN, plan_sheet, sheet_labels, write_sheet
from autogaze_mllm.signvid.signs import BORDER, COLOURS, DIGITS, FONTS, MARKS, SIZE, Warp, cell_of, glyphs
from autogaze_mllm.signvid.signs import code_of as code
from scripts.train_sign_tower import WORDS, said_by

from ..helpers.paths import ROOT

SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sheets")
    for number in range(2):
        write_sheet(folder, 7, number)
    return folder


def test_labels_say_what_stands_in_the_decoded_frames(written):
    """The template reader, told the place, reads what the labels name."""
    right = total = 0
    for number in range(2):
        plan = plan_sheet(7, number)
        frames, labels = (np.load(written / f"{number:05}-{name}.npy") for name in ("frames", "labels"))
        assert frames.shape == (2, sheets.SIDE, sheets.SIDE, 3) and labels.shape == (2, 42, 42, 4)
        light = frames[1].astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        for shown in plan.signs[:25]:
            column, row = (round((place + BORDER) / 16) for place in (shown.x, shown.y))
            mark, digit, colour, place = labels[1, row, column]
            assert place == 0 and list(labels[1, row, column + 1]) == [mark, digit, colour, 1]
            assert list(COLOURS)[colour] == shown.sign.colour
            top, left, cell = shown.y + BORDER - SHIFT, shown.x + BORDER - SHIFT, cell_of(SIZE)
            window = light[top : top + cell + 2 * SHIFT, left : left + 2 * cell + 2 * SHIFT]
            right += read_sign(window, shown.sign.font, SIZE, 1, shown.sign.warp) == code(MARKS[mark], DIGITS[digit])
            total += 1
    assert total == 50 and right >= 48


def test_signs_that_are_not_there_yet_have_no_label():
    plan = plan_sheet(7, 0)
    late = next(shown for shown in plan.signs if shown.start > 0)
    column, row = (round((place + BORDER) / 16) for place in (late.x, late.y))
    assert sheet_labels(plan, late.start - 1)[row, column, 0] in (NOTHING, UNKNOWN)
    assert sheet_labels(plan, late.start)[row, column, 0] == MARKS.index(late.sign.mark)
    assert {shown.sign.font for shown in plan.signs} <= set(FONTS["train"]) and plan.split == "train"


def test_a_token_says_all_that_its_patches_show():
    a7 = [MARKS.index("A"), DIGITS.index("7"), 0, 0]
    lost_half = [MARKS.index("C"), UNKNOWN, 1, 0]
    labels = torch.tensor([a7, [NOTHING] * 4, lost_half, [NOTHING] * 4, [NOTHING] * 4])
    said, sure = said_by(labels, [3, 2], merge=2)
    words = [[WORDS[int(n)] for n in row.nonzero()[:, 0]] for row in said]
    first, second = list(COLOURS)[:2]
    assert words == [["A", "7", first], ["C", second], []]  # the third patch alone is repeated to fill its token
    assert sure.tolist() == [True, False, True]


@pytest.mark.slow
def test_the_recipe_teaches_the_tower_and_keeps_the_rest(tmp_path):
    def run(script: str, *arguments: str | Path) -> str:
        command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("make_bundled_mllm.py", tmp_path / "untrained")
    options = ["--sheets", "4", "--steps", "4", "--report-every", "2", "--tiles", "4", "--workers", "1"]
    told = run("train_sign_tower.py", tmp_path / "untrained", tmp_path / "tower", *options)
    assert '"both"' in told and '"tokens with signs"' in told
    for part, changed in (("vision_tower", True), ("mm_projector", True), ("llm", False)):
        before, after = (load_file(tmp_path / name / part / "model.safetensors") for name in ("untrained", "tower"))
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[key], after[key]) for key in before) == changed
    assert am.wrap(tmp_path / "tower", "all", cache=False).family.projector.merge == 4


def test_a_warp_makes_another_face_of_a_font():
    def inked(warp: Warp | None) -> np.ndarray:
        """Of the letter H: rows and columns of its dark pixels."""
        dark = glyphs("H", "7", "DejaVuSans", SIZE, warp)[:, : cell_of(SIZE)] > 0.3
        return np.argwhere(dark)

    def extent(warp: Warp | None, axis: int) -> int:
        return int(np.ptp(inked(warp)[:, axis])) + 1

    assert extent(Warp(width=0.75), 1) < extent(None, 1) < extent(Warp(width=1.3), 1)
    assert extent(Warp(height=0.75), 0) < extent(None, 0) < extent(Warp(height=1.3), 0)
    leaning = inked(Warp(slant=0.3))
    top, bottom = (leaning[leaning[:, 0] == row, 1].mean() for row in (leaning[:, 0].min(), leaning[:, 0].max()))
    assert top > bottom + 1  # slanted to the right
    assert {shown.sign.warp is None for shown in plan_sheet(7, 0).signs} == {True, False}
