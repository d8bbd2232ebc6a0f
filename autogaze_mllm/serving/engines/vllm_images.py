"""A vLLM that serves a published LLaVA checkpoint as it is: it gets text, and visual tokens in place of pictures.

The text is that of our prompt, word by word; the engine's chat template must hand it on unchanged.
"""

from __future__ import annotations

from typing import Any

from ...mllm.calls.inputs import ModelInputs
from ..errors import bad_request
from .vllm import VllmEngine


class VllmImagesEngine(VllmEngine):
    way = "images"
    route = "/v1/chat/completions"
    start = (
        "start it with: python -m vllm.entrypoints.openai.api_server --model MODEL --enable-mm-embeds "
        "--limit-mm-per-prompt '{\"image\": 0}' --chat-template-content-format string "
        "--chat-template \"{{ messages[0]['content'] }}\""
    )

    def ready(self, inputs: ModelInputs) -> dict[str, Any]:
        ids, embedded = inputs["input_ids"][0], self.embedded(inputs)
        visual = self.model.family.is_visual(ids)
        runs = [run for item in inputs["media"][0] for run in item.runs]
        images = embedded[visual].split(runs) if runs else ()
        parts = [{"type": "image_embeds", "image_embeds": self.packed(image)} for image in images]
        content = [{"type": "text", "text": self._text(ids.tolist(), runs)}, *parts]
        return {
            "messages": [{"role": "user", "content": content}],
            "add_special_tokens": False,
            "add_generation_prompt": False,
            "tokens": len(ids),
        }

    def _text(self, ids: list[int], runs: list[int]) -> str:
        """The prompt with one placeholder for each picture, which the engine writes out again."""
        family, waiting = self.model.family, iter(runs)
        single, offset = [], 0
        while offset < len(ids):
            single.append(ids[offset])
            offset += next(waiting) if ids[offset] in (family.image_token_id, family.video_token_id) else 1
        tokenizer = self.model.tokenizer
        text = tokenizer.decode(single, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != single:
            raise bad_request("this text would be read as a picture, or otherwise than it is written", "messages")
        return text
