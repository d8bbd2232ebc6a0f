"""EvalConfig: what is asked of a model, and how much of it."""

from __future__ import annotations

from ..common.fields import setting, settings


@settings()
class EvalConfig:
    """How a benchmark is run; how the model looks at its videos is `VideoSettings`."""

    split: str = setting(
        "part of the data set (default: the one that is reported)",
        default="",
        usual=False,
        manual="part of the data set; empty: the one that is reported",
    )
    subtitles: bool = setting("ask with subtitles (videomme)", default=False)
    limit: int | None = setting(
        "only the first N questions",
        default=None,
        usual=False,
        at_least=1,
        refusal="--limit must be at least 1",
        metavar="N",
    )
    max_new_tokens: int | None = setting(
        "longest answer",
        default=None,
        usual="default: the benchmark's own",
        at_least=1,
        refusal="--max-new-tokens must be at least 1",
        metavar="N",
    )
    seed: int = setting(
        "of gaze=random", default=0, at_least=0, at_most=2**32 - 1, refusal="--seed must lie in [0, 2**32 - 1]"
    )
