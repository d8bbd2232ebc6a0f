"""A model that is in memory already, wrapped, compared with itself, saved, loaded, and handed back untouched.

    python examples/wrap_your_own_model.py clip.mp4
    python examples/wrap_your_own_model.py clip.mp4 --model llava-hf/llava-onevision-qwen2-7b-ov-hf

Without --model it is a LLaVA-OneVision with tiny random weights, whose answers mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import AutoModelForImageTextToText

import autogaze_mllm as am
from autogaze_mllm.mllm.tiny import tiny_model

QUESTION = "<video>\nWhat moves?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--model", help="hub id or folder")
    arguments = parser.parse_args()
    if arguments.model:
        base = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto", trust_remote_code=False)
        processor = None
    else:
        base, processor = tiny_model("llava_onevision", image_size=64)  # or a model and processor of your own

    model = am.wrap(base, gaze="pixel-diff", processor=processor, frames=8, ratio=0.25, cache=False)
    inputs = model.prepare(QUESTION, videos=[arguments.video])
    print("gazed: ", model.stats["visual_tokens"], "visual tokens; dense:", model.stats["dense_tokens"])
    with torch.no_grad():
        gazed_logits = model(**inputs).logits
    with model.disabled():  # inside, the model is its dense base
        print(
            "dense: ", model.prepare(QUESTION, videos=[arguments.video])["input_ids"].shape[1], "tokens in the prompt"
        )

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = am.load(folder, cache=False)
        with torch.no_grad():
            print("loaded: the same logits:", torch.equal(again(**inputs).logits, gazed_logits))
    print("unwrapped: the same object:", model.unwrap() is base)


if __name__ == "__main__":
    main()
