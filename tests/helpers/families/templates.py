"""Chat templates with the media tokens and the turns of the families' published ones, in words of our own."""

from __future__ import annotations

_PARTS = """
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}{{ 'IMAGE' }}{%- elif part.type == 'video' -%}{{ 'VIDEO' }}
{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""


def _template(turns: str, image: str = "<image>", video: str = "<video>") -> str:
    """turns: jinja over `messages`, in which show(content) stands for a message's text and media."""
    parts = _PARTS.replace("IMAGE", image).replace("VIDEO", video)
    return parts.replace("\n{%", "{%").strip("\n") + turns


_IM = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}\
{{ show(message.content) + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_VICUNA = """{% for message in messages %}{% if message.role == 'user' %}{{ 'USER: ' + show(message.content) + ' ' }}\
{% else %}{{ 'ASSISTANT: ' + show(message.content) + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
_ONEVISION = """{% for message in messages %}{{ '<|im_start|>' + message.role + ' ' }}\
{{ show(message.content) + '<|im_end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
_SMOLVLM = """{{ '<|im_start|>' }}{% for message in messages %}{{ message.role | capitalize }}\
{{ ':' if message.content[0].type == 'image' else ': ' }}\
{{ show(message.content) + '<end_of_utterance>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
_IDEFICS3 = _SMOLVLM.replace("'<|im_start|>'", "bos_token")
_GEMMA3 = """{{ bos_token }}{% for message in messages %}\
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}\
{{ show(message.content) | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
_GEMMA4 = _GEMMA3.replace("<start_of_turn>", "<|turn>").replace("<end_of_turn>", "<turn|>")
_AYA = """{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}\
{{ '<|CHATBOT_TOKEN|>' if message.role == 'assistant' else '<|USER_TOKEN|>' }}\
{{ show(message.content) + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""
_QWEN = _template(_IM, "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")

# None: the family has no conversations.
TEMPLATES: dict[str, str | None] = {
    "llava": _template(_IM, "<image>\\n"),
    "llava_clip": _template(_VICUNA, "<image>\\n"),
    "llava_next_video": _template(_VICUNA, "<image>\\n", "<video>\\n"),
    "video_llava": _template(_VICUNA, "<image>\\n", "<video>\\n"),
    "llava_onevision": _template(_ONEVISION, "<image>\\n", "<video>\\n"),
    "smolvlm": _template(_SMOLVLM),
    "idefics3": _template(_IDEFICS3),
    "internvl": _template(_IM, "<IMG_CONTEXT>\\n", "<video>\\n"),
    "aya_vision": _template(_AYA),
    "video_llama_3": _template(_IM, "<|image_pad|>\\n", "<|video_pad|>\\n"),
    "gemma3": _template(_GEMMA3, "<start_of_image>", "<start_of_image>"),
    "paligemma": None,
    "paligemma2": None,
    "gemma4": _template(_GEMMA4, "<|image|>", "<|video|>"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _QWEN),
}
