"""Samples from json: both conventions, tags, and a check that reports every fault with its file and row."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.finetuning.data.media_store import GazedCache, MediaStore
from autogaze_mllm.finetuning.data.samples import check_samples, load_samples, read_samples

from ..helpers.files.finetune_files import turns, wrapped


def write(folder, rows, name="data.jsonl"):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def only(folder, row):
    samples, faults = read_samples([write(folder, [row])])
    return samples[0] if samples else None, [fault.message for fault in faults]


def test_both_conventions_say_the_same(tmp_path):
    first = {"video": "a.mp4", "image": ["b.png"], "conversations": turns("see <video> and <image>", "yes")}
    second = {
        "videos": ["a.mp4"],
        "images": ["b.png"],
        "messages": [
            {"role": "user", "content": "see <video> and <image>"},
            {"role": "assistant", "content": "yes"},
        ],
    }
    third = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see "},
                    {"type": "video", "video": "a.mp4"},
                    {"type": "text", "text": " and "},
                    {"type": "image", "path": "b.png"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        ]
    }
    found = load_samples([write(tmp_path, [first, second, third], "all.json")])
    assert len(found) == 3
    for sample in found:
        assert [(turn.role, turn.text) for turn in sample.turns] == [
            ("user", "see <video> and <image>"),
            ("assistant", "yes"),
        ]
        assert [(medium.kind, medium.path) for medium in sample.media] == [
            ("video", tmp_path / "a.mp4"),
            ("image", tmp_path / "b.png"),
        ]
    assert [sample.where.rsplit(", ")[1] for sample in found] == ["row 1", "row 2", "row 3"]


def test_media_are_in_the_order_of_their_tags(tmp_path):
    row = {"videos": ["1.mp4", "2.mp4"], "image": "3.png", "conversations": turns("<video> <image> <video>?", "no")}
    sample, _ = only(tmp_path, row)
    assert [medium.path.name for medium in sample.media] == ["1.mp4", "3.png", "2.mp4"]


def test_without_tags_media_come_first_and_image_tags_may_stand_for_videos(tmp_path):
    sample, _ = only(tmp_path, {"video": "1.mp4", "image": "2.png", "conversations": turns("what?", "that")})
    assert sample.turns[0].text == "<video>\n<image>\nwhat?"
    sample, _ = only(tmp_path, {"video": "1.mp4", "conversations": turns("<image>\nwhat?", "that")})
    assert sample.turns[0].text == "<video>\nwhat?" and sample.media[0].kind == "video"


def test_media_root_and_absolute_paths(tmp_path):
    path = write(tmp_path, [{"video": ["a.mp4", "/else/b.mp4"], "conversations": turns("<video><video>?", "x")}])
    media = load_samples([path], tmp_path / "films")[0].media
    assert [str(medium.path) for medium in media] == [str(tmp_path / "films" / "a.mp4"), "/else/b.mp4"]


FAULTS = {
    "tags": ({"video": "a.mp4", "conversations": turns("<video><video>?", "x")}, "2 <video> tags, but 1 videos"),
    "no media": ({"conversations": turns("<image>?", "x")}, "1 <image> tags, but 0 images"),
    "order": ({"conversations": [*turns("a?", "b"), *turns("c?", "d")][1:]}, "turn 1 is the assistant's, expected"),
    "no answer": ({"conversations": turns("a?", "b")[:1]}, "the last turn must be the assistant's"),
    "empty answer": ({"conversations": turns("a?", " ")}, "turn 2 has no text"),
    "tag in an answer": (
        {"image": "i.png", "conversations": turns("a?", "<image>")},
        "turn 2 is the assistant's and has",
    ),
    "unknown role": ({"conversations": [{"from": "robot", "value": "a"}]}, "turn 1: 'from' must be one of"),
    "text": ({"messages": [{"role": "user", "content": 7}]}, "turn 1: 'content' must be text, got 7"),
    "no turns": ({"video": "a.mp4"}, "expected either 'conversations' or 'messages'"),
    "both": ({"messages": [], "conversations": []}, "got both"),
    "path": ({"video": 5, "conversations": turns("a?", "b")}, "'video' must be a path or a list of paths, got 5"),
    "not an object": ([1], "expected an object, got list"),
}


FAULTS |= {
    "unknown key": (
        {"video": "a.mp4", "video_strt": 1, "conversations": turns("a?", "b")},
        "did you mean 'video_start'?",
    ),
    "audio": ({"audios": ["a.mp3"], "conversations": turns("a?", "b")}, "the key 'audios' means nothing here"),
    "system": ({"system": "be short", "conversations": turns("a?", "b")}, "the key 'system' means nothing here"),
    "weight of a turn": (
        {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b", "weight": 0}]},
        "turn 2: the key 'weight' means nothing here",
    ),
    "loss of a turn": (
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b", "loss": False}]},
        "turn 2: the key 'loss' means nothing here",
    ),
    "pixels of a part": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4", "max_pixels": 9}]}]},
        "turn 1: the key 'max_pixels' means nothing here",
    ),
    "part of an image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png", "start": 9}]}]},
        "turn 1: the key 'start' means nothing here",
    ),
    "backwards": (
        {"video": "a.mp4", "video_start": 3, "video_end": 2, "conversations": turns("a?", "b")},
        "end must be after start, got 3 and 2",
    ),
    "text as time": ({"video": "a.mp4", "start": "0:10", "conversations": turns("a?", "b")}, "start must be a number"),
    "no rate": ({"video": "a.mp4", "fps": 0, "conversations": turns("a?", "b")}, "fps must be above 0"),
    "twice": (
        {"video": "a.mp4", "start": 1, "video_start": 1, "conversations": turns("a?", "b")},
        "'start' is said twice",
    ),
    "which of two": (
        {"videos": ["a.mp4", "b.mp4"], "start": 1, "conversations": turns("a?", "b")},
        "'start' must be a list of 2 numbers, one for each video, got 1",
    ),
    "of no video": ({"image": "a.png", "start": 1, "conversations": turns("a?", "b")}, "but there is none"),
    "here and there": (
        {
            "start": 1,
            "messages": [
                {"role": "user", "content": [{"type": "video", "video": "a.mp4", "video_start": 2}]},
                {"role": "assistant", "content": "b"},
            ],
        },
        "'start' is said both beside the messages and inside them",
    ),
    "elsewhere": (
        {
            "video": "a.mp4",
            "messages": [
                {"role": "user", "content": [{"type": "video", "start": 2}, {"type": "text", "text": "a?"}]},
                {"role": "assistant", "content": "b"},
            ],
        },
        "is said of a video that stands elsewhere",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_row_is_reported(name, tmp_path):
    row, message = FAULTS[name]
    sample, faults = only(tmp_path, row)
    assert sample is None
    assert any(message in fault for fault in faults), faults


def test_check_reports_all_faults_of_all_files_with_file_and_row(tmp_path, clip, capsys):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    first = write(
        tmp_path,
        [
            {"video": str(clip), "conversations": turns("<video>?", "fine")},
            "{not json",
            {"video": "broken.mp4", "conversations": turns("<video>?", "x")},
            "",
            {"video": "missing.mp4", "image": "cut.png", "conversations": turns("<video><image>?", "x")},
        ],
    )
    second = write(tmp_path, [{"image": "good.png", "conversations": turns("a <image>?", "")}], "more.json")
    assert main(["finetune", "--check", "--data", str(first), str(second)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [
        f"{first}, row 2",
        f"{first}, row 3",
        f"{first}, row 5",
        f"{first}, row 5",
        f"{second}, row 1",
    ]
    assert "missing.mp4: no such file" in "".join(lines) and "cut.png: not a readable image" in "".join(lines)
    assert lines[-1].endswith("5 faults")
    assert main(["finetune", "--check", "--json", "--data", str(first)]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [fault["row"] for fault in told["faults"]] == [2, 3, 5, 5]
    good = write(tmp_path, [{"video": str(clip), "conversations": turns("<video>?", "fine")}], "good.jsonl")
    assert main(["finetune", "--check", "--data", str(good)]) == 0
    samples, faults = check_samples([good])
    assert len(samples) == 1 and not faults


def test_a_row_ends_where_its_line_does_and_may_be_nested_however_deeply(tmp_path):
    """Line separators of Unicode may stand in the texts of json; a row that no parser takes is a fault like others."""
    row = {"conversations": turns("one\u2028two", "a\x85b")}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row, ensure_ascii=False) + "\r\n" + "[" * 100_000 + "\n", encoding="utf-8")
    samples, faults = check_samples([file])
    assert len(samples) == 1 and [(fault.row, "nested too deeply" in str(fault)) for fault in faults] == [(2, True)]
    listed = tmp_path / "rows.json"
    listed.write_text("[" * 100_000)
    with pytest.raises(am.InputError, match="nested too deeply"):
        check_samples([listed])


def test_training_refuses_faulty_data_before_anything_else(tmp_path, capsys):
    bad = write(tmp_path, [{"conversations": turns("a?", "")}])
    assert main(["finetune", "--data", str(bad), "--output", str(tmp_path / "out")]) == 2
    assert f"{bad}, row 1: turn 2 has no text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["finetune", "--data", str(tmp_path / "no.json"), "--output", str(tmp_path / "out")]) == 2
    assert "no.json: cannot be read" in capsys.readouterr().err
    (tmp_path / "text.json").write_text('{"a": 1}')
    with pytest.raises(am.InputError, match="expected a json list of samples"):
        load_samples([tmp_path / "text.json"])


def part(row):
    return [(medium.start, medium.end, medium.fps) for medium in row.media]


def test_parts_of_videos_are_read_in_every_layout(tmp_path):
    chat = turns("what?", "that")

    def inside(**said):
        content = [{"type": "video", "video": "a.mp4", **said}, {"type": "text", "text": "what?"}]
        return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "that"}]}

    rows = [
        {"video": "a.mp4", "video_start": 1.5, "video_end": 3, "conversations": chat},
        {"video": "a.mp4", "start": 1.5, "end": 3, "conversations": chat},
        {"videos": ["a.mp4"], "start": [1.5], "end": [3.0], "conversations": chat},
        {**inside(), "video_start": 1.5, "video_end": 3},
        inside(start=1.5, end=3),
        inside(video_start=1.5, video_end=3, fps=None),
    ]
    for row in rows:
        assert part(only(tmp_path, row)[0]) == [(1.5, 3, None)], row
    assert part(only(tmp_path, inside(fps=2))[0]) == [(None, None, 2)]
    two = {"videos": ["a.mp4", "b.mp4"], "conversations": chat}
    assert part(only(tmp_path, {**two, "fps": 2})[0]) == [(None, None, 2)] * 2
    assert part(only(tmp_path, {**two, "start": [1, None], "end": [None, 2]})[0]) == [(1, None, None), (None, 2, None)]


def test_labels_and_empty_keys_do_no_harm(tmp_path):
    row = {
        "id": 7,
        "data_source": "mine",
        "question_type": "open",
        "duration": 12.5,
        "video": "a.mp4",
        "image": None,
        "video_start": None,
        "messages": None,
        "system": None,
        "_comment": "checked",
        "conversations": [{"from": "human", "value": "a?", "id": 1}, {"from": "gpt", "value": "b", "weight": None}],
    }
    sample, faults = only(tmp_path, row)
    assert not faults and part(sample) == [(None, None, None)]


def test_the_check_looks_whether_a_part_is_there(tmp_path, clip, capsys):
    rows = [
        {"video": str(clip), "video_start": 100, "video_end": 200, "conversations": turns("what?", "that")},
        {"video": str(clip), "video_start": 1, "video_end": 200, "conversations": turns("what?", "that")},
    ]
    path = write(tmp_path, rows)
    assert main(["finetune", "--check", "--data", str(path)]) == 2
    told = capsys.readouterr().out
    assert f"{path}, row 1: {clip}: no frame between 100 and 200 seconds" in told and "row 2" not in told


def test_training_sees_the_part_alone(tmp_path, clip):
    model = wrapped(frames=32)
    rows = [
        {"video": str(clip), "conversations": turns("what?", "that")},
        {"video": str(clip), "video_start": 0.5, "video_end": 1, "conversations": turns("what?", "that")},
        {"video": str(clip), "fps": 2, "conversations": turns("what?", "that")},
    ]
    model.cache = cache = GazedCache(tmp_path / "gazed")
    store = MediaStore(model, cache)
    samples = load_samples([write(tmp_path, rows)])
    assert store.prepare(samples) == {"videos": 3, "gazed": 3}
    seen = [store.media(sample)[0].content.timestamps.unique().tolist() for sample in samples]
    assert seen[0] == pytest.approx([number / 10 for number in range(20)])
    assert seen[1] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert seen[2] == pytest.approx([0, 0.5, 1, 1.5])
    gazed = MediaStore(model, cache, keep_videos=True)
    gazed.prepare(samples)
    assert [gazed.media(sample)[0].video for sample in samples] == [
        am.Video(clip),
        am.Video(clip, 0.5, 1),
        am.Video(clip, fps=2),
    ]
