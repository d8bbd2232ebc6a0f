"""The wrapped model as it is trained: everything before the LLM's layers is one module, so that samples may differ.

Samples with several videos, one, an image or none run the tower a different number of times, and not the same parts of
it. So that part is run inside one autograd node (`opaque_function.py` says why), and so is a gaze model that is
trained along. For ZeRO-3 these modules are leaves: their parameters are gathered and released together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..common.errors import listed
from ..mllm.families import Family
from ..mllm.media import Media
from ..mllm.model import GazedModel
from .config import RolloutConfig
from .data.conversation import IGNORED, encode_conversation
from .data.dataset import Item, collator, padding_id
from .data.samples import Sample
from .opaque_function import OneNode
from .rollouts import GazePolicy, VideoRef, policy_term


class Embedder(nn.Module):
    """Token embeddings, tower and projector: prompts and media -> what the LLM's layers take (B, L, D)."""

    _gazed: GazedModel  # outside the module tree

    def __init__(self, gazed: GazedModel, modules: Sequence[nn.Module], loose: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.loose = nn.ParameterList(loose)
        object.__setattr__(self, "_gazed", gazed)

    def forward(self, anchor: torch.Tensor, input_ids: torch.Tensor, media: Sequence[Sequence[Media]]) -> torch.Tensor:
        """anchor: a tensor that needs a gradient. Its own comes after those of all parameters, which is how DeepSpeed
        sees that they are complete."""

        def run() -> torch.Tensor:
            return self._gazed.embed(input_ids, media)

        if not torch.is_grad_enabled():
            return run()
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return OneNode.apply(run, anchor.clone(), *trainable)


class TrainedModel(nn.Module):
    """forward gives {"loss"}. The tree holds the base's own modules, in another arrangement; nothing is copied.

    rollouts: how the gaze model is trained along. Without them it is not part of the tree: it is frozen, and its
    results are what `media` holds.
    """

    gazed: GazedModel  # outside the module tree
    accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch, which counts all processes and accumulation

    def __init__(self, gazed: GazedModel, rollouts: RolloutConfig | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "gazed", gazed)
        base, family = gazed.family.base, gazed.family
        modules, loose, rest = _divided(base, "", family, base.get_input_embeddings())
        self.embedder = Embedder(gazed, modules, loose)
        self.llm = nn.ModuleList(rest)
        self.policy = None if rollouts is None else GazePolicy(gazed, rollouts)
        self.config = copy.deepcopy(gazed.config)  # read for DeepSpeed's "auto" sizes, and changed by the trainer
        named = {id(parameter): name.removeprefix("base.") for name, parameter in gazed.named_parameters()}
        # By their names here: an engine may put other parameters in their places.
        self.names = {name: named[id(parameter)] for name, parameter in self.named_parameters()}

    def train(self, mode: bool = True) -> TrainedModel:
        super().train(mode)
        self.gazed.family.base.train(mode)
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        media: Sequence[Sequence[Media | VideoRef]],
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        samples: Sequence[Sample] | None = None,
        cuts: Sequence[int] = (),
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> dict[str, torch.Tensor]:
        """samples, cuts: what each row was made of, and how many tokens it lost at its end; needed where the gaze model
        is trained. A video has as many visual tokens as it then turns out to have, and its text is part of the
        conversation's: tokenizers join what stands at its edges with what stands beside it."""
        learnt = (F.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED).sum()
        count = learnt.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        if self.policy is None:
            losses = self._losses(input_ids, labels, media, attention_mask, position_ids)  # type: ignore[arg-type]
            return {"loss": losses.sum() / count}
        assert samples is not None
        anchor = torch.zeros(1, device=input_ids.device, requires_grad=True)
        shown = self.policy(anchor, media)
        items = []
        for row, variants in enumerate(shown.media):
            for variant in variants:
                layouts = [item.layout for item in variant]
                encoded = encode_conversation(samples[row], layouts, self.gazed.preprocessing, self.gazed.family)
                end = len(encoded.ids) - cuts[row]
                items.append(Item(encoded.ids[:end], encoded.labels[:end], variant))
        batch = collator(padding_id(self.gazed), packing=False)([items])
        given = [batch[name].to(input_ids.device) for name in ("input_ids", "labels", "attention_mask")]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns_itself()):
            losses = self._losses(given[0], given[1], batch["media"], given[2], None)
        by_sample = losses.split([len(variants) for variants in shown.media])
        loss = torch.stack([variants.mean() for variants in by_sample]).sum()
        if shown.scores is not None:
            loss = loss + policy_term(shown.scores, by_sample)
        return {"loss": loss / count}

    def _learns_itself(self) -> bool:
        """Whether anything but the gaze model is trained."""
        return any(parameter.requires_grad for part in (self.embedder, self.llm) for parameter in part.parameters())

    def _losses(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        media: Sequence[Sequence[Media]],
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Of each row, the loss summed over what is learnt (B,)."""
        anchor = torch.zeros(1, device=input_ids.device, requires_grad=True)
        embedded = self.embedder(anchor, input_ids, media)
        # Only where something is learnt are logits made: over a large vocabulary they would be the largest tensor.
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        wanted = (targets != IGNORED).any(dim=0).nonzero().flatten()
        given = {"attention_mask": attention_mask, "logits_to_keep": wanted, "use_cache": False}
        if position_ids is not None:
            given["position_ids"] = position_ids
        with self.gazed.base_inputs(input_ids, media, given, embedded, labels) as inputs:
            output = self.gazed.family.base(**inputs)
        logits = output.logits
        if logits.shape[1] == targets.shape[1]:  # also of a base that makes all of them, whatever it is asked for
            logits = logits[:, wanted]
        logits, chosen = logits.float().flatten(0, 1), targets[:, wanted]
        losses = F.cross_entropy(logits, chosen.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view(chosen.shape).sum(dim=1)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Checkpoints leave frozen parameters out; all others must be there."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = sorted(trained - state_dict.keys())
        if strict and missing:
            raise RuntimeError(f"the checkpoint lacks {listed(missing, 1)}")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by their names in the base; those of a trained gaze model begin with "gaze."."""
        for name, parameter in self.named_parameters():
            yield self.names[name], parameter


def _divided(
    module: nn.Module, path: str, family: Family, embedding: nn.Module
) -> tuple[list[nn.Module], list[nn.Parameter], list[nn.Module]]:
    """What lies below `module`: the largest modules that belong before the LLM's layers, loose parameters that do, and
    the largest modules that hold nothing of the kind. path: of the module in the base, with its dot."""
    starts = (*family.PREFIXES["tower"], *family.PREFIXES["projector"])

    def before(name: str, child: nn.Module) -> bool:
        return child is embedding or f"{name}.".startswith(starts)

    modules: list[nn.Module] = []
    rest: list[nn.Module] = []
    loose = [part for name, part in module.named_parameters(path[:-1], recurse=False) if name.startswith(starts)]
    for name, child in module.named_children():
        name = path + name
        if before(name, child):
            modules.append(child)
        elif any(before(deep, inner) for deep, inner in child.named_modules(prefix=name)):
            more = _divided(child, f"{name}.", family, embedding)
            modules, loose, rest = modules + more[0], loose + more[1], rest + more[2]
        else:
            rest.append(child)
    return modules, loose, rest
