"""wrap(): gaze in front of a base model, loaded or named."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from ..common.compute.offloading import has_all_weights
from ..common.errors import InputError, first_line, listed
from ..common.storage.files import check_arguments, find_file, read_fields
from ..gaze.cache import VideoCache, is_index
from ..gaze.grid import Side
from ..gaze.selector_registry import load_selector
from ..gaze.selectors.base import AnySelector, as_selector
from ..gaze.settings import VideoSettings
from ..vision.any_size import CoarsePositions
from ..vision.attention import AttentionType, Backend
from .families import Family, family_class, family_of_type
from .model import GazedModel
from .native import native_class
from .preprocessing import Preprocessing
from .registry import remember, wrapper_of

logger = logging.getLogger(__name__)

DEFAULT_GAZE = "nvidia/AutoGaze"


def wrap(
    model: nn.Module | str | Path,
    gaze: AnySelector | str | Path = DEFAULT_GAZE,
    *,
    processor: Any = None,
    settings: VideoSettings | None = None,
    scales: str | list[Side] | None = None,
    attn_type: AttentionType | None = None,
    frame_independent: bool | None = None,
    coarse_positions: CoarsePositions | None = None,
    backend: Backend = "sdpa",
    compile: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    hub: dict[str, Any] | None = None,
    cache: VideoCache | str | Path | bool = True,
    **overrides: Any,
) -> GazedModel:
    """Puts gaze in front of a multimodal LLM. InputError for a model that is not supported or already wrapped.

    model: a hub id, a folder, or a loaded model (then its device and dtype are followed), also one in a PeftModel with
    LoRA or its kin. gaze: the gaze model's id or folder, "pixel-diff", "greedy", "random", "all", or a selector object.
    processor: the base model's; default: loaded from where the model came from. settings, overrides: VideoSettings, or
    its fields (frames, ratio, loss, ...); default: the family's own. scales: sides of the tower's multi-scale input;
    default: what the model's configuration says, or the gaze model's own cells, as many whole times as come closest to
    the tower's image size; towers of any size follow each video.
    attn_type, frame_independent: default: what the configuration says, or what the family's tower was trained with.
    coarse_positions: of towers with rotary positions, those of coarse patches (`AnySizeTower`).
    compile: torch.compile the gazed tower, which takes a minute at its first call.
    hub: revision and subfolder of the base model; token, cache_dir, local_files_only, force_download of it and of the
    gaze model, of which another revision than the newest is loaded by `AutoGaze.from_pretrained`.
    cache: keep gazed videos on disk, so that further questions on a video cost only the LLM (a folder, a VideoCache
    with a size limit, or False). A folder that `autogaze-mllm index` filled is looked into besides the usual one.
    """
    hub = hub or {}
    check_arguments(hub, (), "wrap(hub=)")
    download = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
    if isinstance(model, (str, Path)):
        adapter, load_base = _base_loader(model, hub)
        settings = (settings or adapter.default_settings()).changed(**overrides)  # refused before weights are read
        gaze = load_selector(gaze, **download)  # a wrong name is refused before a large model is read
        base: Any = load_base(device=device, dtype=dtype)
        outer, origin = base, str(model)
    else:
        outer, base = model, inner_model(model)
        adapter = _adapter_of(base, device, dtype)
        settings = (settings or adapter.default_settings()).changed(**overrides)
        origin = getattr(base.config, "name_or_path", "")
    preprocessing = _preprocessing(adapter, base, processor, origin, hub)
    family = adapter(base, preprocessing)
    adapter.check_tower(base.config)
    family.check_placeholders()
    selector = load_selector(gaze, device=family.device, dtype=base.dtype, **download)
    given = {"scales": scales, "attn_type": attn_type, "frame_independent": frame_independent}
    shape = _tower_shape(family, selector, given) | {"coarse_positions": coarse_positions}
    tower = family.make_tower(as_selector(selector).grid, **shape, backend=backend, compile=compile)
    wrapped = GazedModel(family, preprocessing, selector, tower, settings, _cache(cache), outer)
    wrapped.train(base.training)
    remember(base, wrapped)
    return wrapped


def inner_model(outer: object) -> Any:
    """The transformers model inside of what peft made around it; else the model itself. Raises InputError for what
    cannot be wrapped as it is."""
    if not isinstance(outer, nn.Module):
        raise InputError(f"wrap() takes a model, a folder or a hub id, got {type(outer).__name__}")
    model: Any = outer
    if any(isinstance(part, GazedModel) for part in model.modules()):
        raise InputError("this model is already wrapped: use it as it is, or call unwrap() first")
    if {"_orig_mod", "module"} & {name for name, _ in model.named_children()}:
        kind = type(model).__name__
        raise InputError(f"wrap the model inside of {kind}, then make a {kind} of the wrapped one")
    configs = getattr(model, "peft_config", None)
    if not configs or not hasattr(model, "get_base_model"):
        return model
    for config in configs.values():
        if getattr(config, "is_prompt_learning", False):
            raise InputError(
                f"an adapter of kind {getattr(config.peft_type, 'value', config.peft_type)} changes the prompt itself: "
                "wrap() takes those that change layers (LoRA and its kin)"
            )
    return model.get_base_model()


def _adapter_of(model: Any, device: object, dtype: object) -> type[Family]:
    """The family of a model that is loaded and free to be wrapped."""
    if device is not None or dtype is not None:
        raise InputError("device and dtype are those of the loaded model: move it with .to() before wrapping")
    if wrapper_of(model) is not None:
        raise InputError("this model is already wrapped: use that wrapper, or call its unwrap() first")
    return family_class(getattr(model, "config", None), type(model).__name__)


def _preprocessing(adapter: type[Family], base: Any, processor: Any, origin: str, hub: dict[str, Any]) -> Preprocessing:
    """origin: the id or folder that the base model, and so its processor, came from, if it is known."""
    if processor is None:
        if not origin:
            raise InputError("this model was not loaded from a folder or the hub: give its processor=")
        processor = adapter.load_preprocessing(origin, **hub)
    if not has_all_weights(base):
        raise InputError("weights of this model were never loaded: wrap one that is in memory, or offloaded")
    return Preprocessing.of(processor)


def _tower_shape(family: Family, selector: AnySelector, given: dict[str, Any]) -> dict[str, Any]:
    """What the gazed tower is made with. given: what the caller says; None: what the configuration says."""
    shape = family.tower_defaults() | {name: value for name, value in given.items() if value is not None}
    if "scales" not in shape:
        shape["scales"] = family.default_scales(as_selector(selector).grid)
    return shape


def _cache(cache: VideoCache | str | Path | bool) -> VideoCache | None:
    if isinstance(cache, bool):
        try:
            return VideoCache() if cache else None
        except InputError as error:  # nobody asked for this folder, so nobody should be stopped by it
            logger.warning("going without a cache: %s", error)
            return None
    if isinstance(cache, VideoCache):
        return cache
    return VideoCache(index=cache) if is_index(cache) else VideoCache(cache)


def _base_loader(source: str | Path, hub: dict[str, Any]) -> tuple[type[Family], Callable[..., Any]]:
    """The family of a base model, and what loads it with `device` and `dtype`. No weights are read yet: a model that is
    not supported is refused by its configuration."""
    native = native_class(source, **hub)
    if native is not None:
        return family_class(native, str(source)), functools.partial(native.from_pretrained, source, **hub)
    options = {**hub, "trust_remote_code": False}  # no code of a repository is run, or asked about
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (ValueError, TypeError) as error:  # a model type that transformers does not know
        path = find_file(source, "config.json", **hub)
        kind = read_fields(path).get("model_type", str | None, None) if path else None
        family_of_type(kind, str(source))
        raise InputError(f"{source}: {first_line(error)}") from error
    except Exception as error:  # unreadable files, and keys of wrong types: errors of many types
        find_file(source, "config.json", **hub)  # says in one line why there is no configuration
        raise InputError(f"{source}: cannot be loaded: {first_line(error)}") from error
    adapter = family_class(config, str(source))
    adapter.check_tower(config)
    return adapter, functools.partial(_load_by_transformers, source, options)


def _load_by_transformers(source: str | Path, hub: dict[str, Any], device: Any, dtype: Any) -> Any:
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype or "auto", output_loading_info=True, **hub
        )
    except Exception as error:  # damaged files and wrong shapes come as errors of many types
        raise InputError(f"{source}: weights cannot be loaded: {first_line(error)}") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would go on with random values in their place
        raise InputError(f"{source}: the checkpoint lacks {listed(missing, 5)}")
    return model.to(device) if device is not None else model
