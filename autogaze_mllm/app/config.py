"""AppConfig: where the page is, and how much it takes on."""

from __future__ import annotations

from ..common.fields import setting, settings


@settings("app: ")
class AppConfig:
    """Of the page; what is done with a video stands in VideoSettings."""

    host: str = setting(
        "the address to listen at; 0.0.0.0: whoever reaches this machine",
        default="127.0.0.1",
        manual="the address to listen at; with 0.0.0.0 whoever reaches this machine may use the page",
    )
    port: int | None = setting(
        "the port to listen at",
        default=None,
        usual="default: the first that is free from 7860 on",
        at_least=1,
        at_most=65535,
        metavar="N",
    )
    max_upload: int = setting("megabytes that a video may have", default=500, at_least=1, at_most=100_000, metavar="MB")
    most_frames: int = setting("frames that may be asked for", default=256, at_least=1, metavar="N")
    most_tiles: int = setting(
        "tiles of a frame that may be asked for", default=144, at_least=1, at_most=1024, metavar="N"
    )
    waiting: int = setting(
        "jobs that may wait for the one that is done", default=8, at_least=1, at_most=1000, metavar="N"
    )
    max_new_tokens: int = setting("tokens of an answer at most", default=64, at_least=1, metavar="N")
    open: bool = setting("show the page in a browser", default=False, usual=False)
