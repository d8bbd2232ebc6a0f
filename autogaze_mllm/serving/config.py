"""What `serve` is told: where it listens, what it lets in, and how much of everything."""

from __future__ import annotations

from typing import Literal

from ..common.errors import InputError
from ..common.fields import Names, Number, setting, settings

LISTENING, ALLOWED, LIMITS, ENGINE = "listening", "allowed", "limits of what clients may ask", "engine"
GROUPS = (LISTENING, ALLOWED, LIMITS, ENGINE)


@settings()
class ServeConfig:
    """Nothing is allowed that is not told: no file, no URL, no other machine than this one."""

    host: str = setting(
        "address to listen at; 0.0.0.0 is every one of this machine", default="127.0.0.1", group=LISTENING
    )
    port: int = setting(
        "port to listen at; 0: any that is free", default=8000, at_least=0, at_most=65535, group=LISTENING
    )
    api_key: str | None = setting(
        "what clients must send as `Authorization: Bearer KEY`",
        default=None,
        usual="default: no key is asked for",
        metavar="KEY",
        group=LISTENING,
    )
    name: str | None = setting(
        "what clients call the model",
        default=None,
        usual="default: its hub id, or the name of its folder",
        group=LISTENING,
    )
    allow_folder: Names = setting("files below it may be asked about", default=(), flag="", group=ALLOWED)
    allow_domain: Names = setting("URLs of this host (or HOST:PORT) are fetched", default=(), flag="", group=ALLOWED)
    allow_private: bool = setting(
        "allowed domains may have addresses in this machine or its private network",
        default=False,
        usual=False,
        group=ALLOWED,
    )
    max_queue: int = setting(
        "requests that are in work or wait; one more is told to come back", default=64, at_least=1, group=LIMITS
    )
    max_body: int = setting("MiB of a request", default=64, at_least=1, metavar="MIB", group=LIMITS)
    max_download: int = setting(
        "MiB of a video or picture behind a URL", default=256, at_least=1, metavar="MIB", group=LIMITS
    )
    max_characters: int = setting(
        "characters of a conversation's text", default=200_000, at_least=1, metavar="N", group=LIMITS
    )
    max_media: int = setting("videos and pictures of a conversation", default=8, at_least=0, metavar="N", group=LIMITS)
    max_duration: Number = setting("seconds of a video", default=3600, above=0, metavar="SECONDS", group=LIMITS)
    max_frames: int = setting(
        "frames that a request may have looked at, of each video; never less than the model's own settings",
        default=512,
        at_least=1,
        metavar="N",
        group=LIMITS,
    )
    max_tiles_asked: int = setting(
        "tiles that a request may have frames cut into; never less than the model's own settings",
        default=64,
        at_least=1,
        metavar="N",
        group=LIMITS,
    )
    max_megapixels: int = setting(
        "million pixels of a frame or picture; 8K has 33", default=36, at_least=1, metavar="N", group=LIMITS
    )
    max_tokens: int = setting(
        "tokens of an answer, and how many it may have where a request does not say",
        default=1024,
        at_least=1,
        metavar="N",
        group=LIMITS,
    )
    max_choices: int = setting("answers to one question (`n`)", default=8, at_least=1, metavar="N", group=LIMITS)
    max_seconds: Number = setting(
        "seconds from the end of a request to that of its answer", default=600, above=0, metavar="SECONDS", group=LIMITS
    )
    max_upload_seconds: Number = setting(
        "seconds that a client may take to send a request", default=60, above=0, metavar="SECONDS", group=LIMITS
    )
    keep_videos: int = setting(
        "videos of which visual tokens, and what the LLM made of them, stay in memory",
        default=8,
        at_least=1,
        metavar="N",
        group=LIMITS,
    )
    engine: str | None = setting(
        "URL of a vLLM that runs the LLM, http://127.0.0.1:8001 say",
        default=None,
        usual="default: it runs in this process",
        metavar="URL",
        group=ENGINE,
    )
    engine_key: str | None = setting(
        "what is sent to the engine as a bearer's key", default=None, usual=False, metavar="KEY", group=ENGINE
    )
    engine_input: Literal["prompt", "images"] = setting(
        "what the engine gets: embeddings of the whole prompt, or, LLaVA alone, text and embeddings of its images",
        default="prompt",
        group=ENGINE,
    )
    engine_dtype: Literal["llm", "float32"] = setting(
        "in which numbers embeddings are sent: those of the LLM, or float32", default="llm", group=ENGINE
    )
    engine_requests: int = setting(
        "requests that the engine works on at once", default=32, at_least=1, metavar="N", group=ENGINE
    )

    def __post_init__(self) -> None:
        for name in ("api_key", "engine_key"):
            key = getattr(self, name)
            if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
                raise InputError(f"{name} must be printable ASCII without blanks around it")
