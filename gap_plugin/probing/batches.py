"""Stored features as the batches of a dataloader."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader, Dataset, Sampler

from .store import FeatureStore


class FeatureBatches(Dataset):
    """Whole batches of a store, by arrays of row indices.

    Args:
        store: The features.
        metainfo: Of the dataset behind them, for the evaluators.
        whole: Whether the labels of a batch come as one sample, which the
            losses concatenate to the same vector as that of its images.
    """

    def __init__(self, store: FeatureStore, metainfo: dict,
                 whole: bool) -> None:
        self.store, self.metainfo, self.whole = store, metainfo, whole
        self.labels = torch.from_numpy(np.array(store.labels))
        if not whole:
            self._samples = [_sample(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, rows: np.ndarray) -> dict[str, Any]:
        features = np.asarray(self.store.features[rows], np.float32)
        samples = ([_sample(self.labels[rows])] if self.whole else
                   [self._samples[row] for row in rows])
        return dict(inputs=torch.from_numpy(features), data_samples=samples)


def _sample(label: torch.Tensor) -> DataSample:
    """Labels as a data sample: class indices, or the scores of one row."""
    if label.is_floating_point():
        return DataSample().set_gt_score(label)
    return DataSample().set_gt_label(label.reshape(-1))


class _RowBatches(Sampler):
    """Arrays of row indices, in the order of MMEngine's DefaultSampler."""

    def __init__(self, rows: int, batch_size: int, shuffle: bool,
                 drop_last: bool, seed: int) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = torch.arange(self.rows)
        if self.shuffle:
            seeded = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.rows, generator=seeded)
        for i in range(len(self)):
            yield order[i * self.batch_size:(i + 1) * self.batch_size].numpy()


def feature_loader(store: FeatureStore, metainfo: dict, whole: bool,
                   size: int, shuffle: bool = False, drop_last: bool = False,
                   seed: int = 0) -> DataLoader:
    """Batches of a store.

    Args:
        store: The features.
        metainfo: As in :class:`FeatureBatches`.
        whole: As there.
        size: Rows of a batch.
        shuffle: Whether each epoch has an order of its own.
        drop_last: Whether a last batch of fewer rows is left out.
        seed: Of the orders.
    """
    return DataLoader(
        FeatureBatches(store, metainfo, whole), batch_size=None,
        collate_fn=_as_it_is,
        sampler=_RowBatches(len(store), size, shuffle, drop_last, seed))


def _as_it_is(batch: dict) -> dict:
    return batch
