"""Samples as the trainer takes them: tokens, labels and media; lengths, grouping, packing and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm

from ...common.compute import distributed
from ...common.errors import InputError, listed
from ...mllm.media import Media
from ...mllm.model import GazedModel
from ..config import TooLong
from ..rollouts import VideoRef
from .conversation import IGNORED, Encoded, encode_conversation
from .media_store import MediaStore
from .samples import SHOWN_FAULTS, Sample

GROUPS = 50  # global batches that are sorted by length together; fewer would pad more, more would mix less


@dataclass
class Item:
    """One sample, ready for a batch. sample: what it was made of; cut: how many tokens were left out at its end."""

    ids: list[int]
    labels: list[int]
    media: Sequence[Media | VideoRef]
    sample: Sample | None = None
    cut: int = 0


class ConversationDataset(Dataset[list[Item]]):
    """Samples whose media are prepared. An entry is a list of items: one sample, or a pack of several.

    lengths: tokens of each entry. Everyone must construct it, with the same samples. Raises InputError naming samples
    that are longer than max_length and must not, or cannot, be truncated.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        model: GazedModel,
        store: MediaStore,
        max_length: int,
        too_long: TooLong = "error",
        packing: bool = False,
        progress: bool = False,
    ) -> None:
        self.samples, self.store = samples, store
        self.preprocessing, self.family = model.preprocessing, model.family
        self.max_length, self.too_long = max_length, too_long
        counts = self._count(progress)
        self.sample_lengths = [counts[number][0] for number in range(len(samples))]
        self.learnt = [counts[number][1] for number in range(len(samples))]
        self.groups = pack(self.sample_lengths, max_length) if packing else [[n] for n in range(len(samples))]
        self.lengths = [sum(self.sample_lengths[number] for number in group) for group in self.groups]

    def _count(self, progress: bool) -> dict[int, tuple[int, int]]:
        """Tokens of each sample, and how many of them are learnt."""
        counts, faults = {}, {}
        own = range(distributed.rank(), len(self.samples), distributed.count())
        for number in tqdm(own, desc="tokens", unit="sample", disable=not progress):
            try:
                encoded = self._encoded(number)
                counts[number] = (len(encoded.ids), sum(label != IGNORED for label in encoded.labels))
            except InputError as error:
                faults[number] = str(error)
        counts, faults = distributed.merged(counts), distributed.merged(faults)
        if faults:
            raise InputError(listed([faults[number] for number in sorted(faults)], SHOWN_FAULTS, "; "))
        return counts

    def _encoded(self, number: int) -> Encoded:
        sample = self.samples[number]
        encoded = encode_conversation(sample, self.store.layouts(sample), self.preprocessing, self.family)
        return fitted(encoded, self.max_length, self.too_long, sample.where)

    def visual_tokens(self) -> list[int]:
        """Of each sample."""
        return [sum(self.store.tokens(sample)) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> list[Item]:
        items = []
        for member in self.groups[number]:
            encoded = self._encoded(member)
            media = self.store.media(self.samples[member])
            items.append(Item(encoded.ids, encoded.labels, media, self.samples[member], encoded.cut))
        return items


def fitted(encoded: Encoded, max_length: int, too_long: TooLong, where: str) -> Encoded:
    """The sample within max_length: as it is, or without the end of its text. A medium is never cut."""
    if len(encoded.ids) <= max_length:
        return encoded
    length = f"{where}: {len(encoded.ids)} tokens, but at most {max_length} fit"
    visual = sum(end - start for start, end in encoded.spans)
    if too_long == "error":
        advice = "raise --max-length, take fewer frames or a lower ratio, or cut texts with --too-long truncate"
        raise InputError(f"{length} ({visual} of them are visual): {advice}")
    if encoded.spans and encoded.spans[-1][1] > max_length:
        raise InputError(f"{length}, and what would be cut holds media: take fewer frames or a lower ratio")
    if all(label == IGNORED for label in encoded.labels[:max_length]):
        raise InputError(f"{length}, and nothing of the answers would be left")
    cut = len(encoded.ids) - max_length
    return Encoded(encoded.ids[:max_length], encoded.labels[:max_length], encoded.spans, cut)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Samples into packs of at most `capacity` tokens: the longest first, each into the fullest pack that has room."""
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> packs that have so much
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        room = min((room for room, waiting in by_room.items() if waiting and room >= lengths[number]), default=None)
        if room is None:
            chosen, room = len(packs), capacity
            packs.append([])
        else:
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
        packs[chosen].append(number)
        by_room.setdefault(room - lengths[number], []).append(chosen)
    return packs


class LengthSampler(Sampler[int]):
    """Every entry once per epoch, in random order; entries of like length come into the same global batch.

    batch: entries of a global batch. group: whether to look at lengths. The order depends on seed and `epoch` alone,
    so a resumed training meets the entries that it would have met.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, group: bool = True) -> None:
        self.lengths, self.batch, self.seed, self.group = lengths, batch, seed, group
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.group:
            yield from order
            return
        batches = []
        for start in range(0, len(order), GROUPS * self.batch):
            alike = sorted(order[start : start + GROUPS * self.batch], key=lambda number: -self.lengths[number])
            batches += [alike[first : first + self.batch] for first in range(0, len(alike), self.batch)]
        last = batches.pop() if batches and len(batches[-1]) < self.batch else []  # a smaller batch only at the end
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[number]
        yield from last


def padding_id(model: GazedModel) -> int:
    """What fills short rows."""
    own = model.tokenizer.pad_token_id
    return model.tokenizer.eos_token_id if own is None else own


def collator(pad_id: int, packing: bool, samples: bool = False) -> Callable[[list[list[Item]]], dict[str, Any]]:
    """Entries -> input_ids, labels (B, L), media per row, and an attention mask, or where packed position ids.
    samples: tell also what each row was made of (not with packing)."""

    def padded(entries: list[list[Item]]) -> dict[str, Any]:
        items = [item for entry in entries for item in entry]
        longest = max(len(item.ids) for item in items)
        ids = torch.full((len(items), longest), pad_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, item in enumerate(items):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            labels[row, : len(item.ids)] = torch.tensor(item.labels)
            mask[row, : len(item.ids)] = 1
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask, "media": [item.media for item in items]}
        made_of = {"samples": [item.sample for item in items], "cuts": [item.cut for item in items]}
        return {**batch, **made_of} if samples else batch

    def packed(entries: list[list[Item]]) -> dict[str, Any]:
        """All in one row. The positions begin anew with every sample, which tells the LLM's attention to keep them
        apart."""
        items = [item for entry in entries for item in entry]
        return {
            "input_ids": torch.tensor([[token for item in items for token in item.ids]]),
            "labels": torch.tensor([[label for item in items for label in item.labels]]),
            "position_ids": torch.cat([torch.arange(len(item.ids)) for item in items])[None],
            "media": [[medium for item in items for medium in item.media]],
        }

    return packed if packing else padded
