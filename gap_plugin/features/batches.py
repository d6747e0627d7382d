"""Rows of a dataset in batches, without those that cannot be read."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

from .images import Bad, Rows


def collate_of(loader: dict) -> Callable[[list], Any]:
    """What makes a batch of samples, as a dataloader's config says."""
    given = dict(loader.get('collate_fn') or dict(type='default_collate'))
    kind = given.pop('type')
    return partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind,
                   **given)


def batches(rows: Rows, loader: dict, blocks: Sequence[int], cuda: bool,
            collate: Callable[[list], Any]) -> DataLoader:
    """Whole blocks, in order: a row's batch mates are always the same.

    So are its features, which depend on them by a rounding.

    Args:
        rows: The samples.
        loader: The config of a dataloader, whose batches are the blocks.
        blocks: Numbers of the blocks to read.
        cuda: Whether batches go to a GPU.
        collate: Makes a batch of samples.

    Returns:
        For each block, the batch of what could be read, None if nothing
        could, and for each row why not, or None.
    """
    size, count = loader['batch_size'], len(rows.names)
    return DataLoader(
        rows, collate_fn=partial(_good, collate=collate),
        num_workers=loader.get('num_workers', 0),
        # of no use elsewhere, and MPS warns of it
        pin_memory=cuda and loader.get('pin_memory', False),
        batch_sampler=[range(b * size, min((b + 1) * size, count))
                       for b in blocks])


def _good(samples: list, collate: Callable
          ) -> tuple[Any, list[str | None]]:
    reasons = [s.reason if isinstance(s, Bad) else None for s in samples]
    good = [s for s in samples if not isinstance(s, Bad)]
    return collate(good) if good else None, reasons
