"""Stored features as the batches of a dataloader."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ..features.store import FeatureStore


class FeatureBatches(Dataset):
    """Whole batches of a store, by arrays of row indices.

    Args:
        stores: The features. Of several stores of the same images, row i of
            the n-th is row n * N + i.
        metainfo: Of the dataset behind them, for the evaluators.
        whole: Whether the labels of a batch come as one sample, which the
            losses concatenate to the same vector as that of its images.
    """

    def __init__(self, stores: Sequence[FeatureStore], metainfo: dict,
                 whole: bool) -> None:
        # as plain arrays on the same memory, which are quicker to index
        self.features = [np.asarray(store.features) for store in stores]
        self.metainfo, self.whole = metainfo, whole
        self.labels = torch.from_numpy(np.array(stores[0].labels))
        if not whole:
            self._samples = [_sample(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: np.ndarray) -> dict[str, Any]:
        view, rows = rows[0] // len(self), rows % len(self)
        features = np.take(self.features[view], rows, axis=0)
        samples = ([_sample(self.labels[rows], whole=True)] if self.whole
                   else [self._samples[row] for row in rows])
        return dict(inputs=torch.from_numpy(features).float(),
                    data_samples=samples)


def _sample(label: torch.Tensor, whole: bool = False) -> DataSample:
    """Labels as a data sample: class indices, or the scores of one row."""
    sample = DataSample(metainfo=dict(whole=whole))
    if label.is_floating_point():
        return sample.set_gt_score(label)
    return sample.set_gt_label(label.reshape(-1))


class _RowBatches(Sampler):
    """Arrays of row indices, in the order of MMEngine's DefaultSampler.

    Each epoch takes the next one of several views of the rows.
    """

    def __init__(self, rows: int, views: int, batch_size: int, shuffle: bool,
                 drop_last: bool, seed: int) -> None:
        self.rows, self.views, self.batch_size = rows, views, batch_size
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
        order += self.epoch % self.views * self.rows
        for i in range(len(self)):
            yield order[i * self.batch_size:(i + 1) * self.batch_size].numpy()


def feature_loader(stores: Sequence[FeatureStore], metainfo: dict,
                   whole: bool, size: int, shuffle: bool = False,
                   drop_last: bool = False, seed: int = 0) -> DataLoader:
    """Batches of a store, or of several of the same images in turn.

    Args:
        stores: One or more, of the same images in the same order.
        metainfo: Of the dataset behind them, for the evaluators.
        whole: Whether the labels of a batch come as one sample.
        size: Rows of a batch.
        shuffle: Whether each epoch has an order of its own.
        drop_last: Whether a last batch of fewer rows is left out.
        seed: Of the orders.
    """
    return DataLoader(
        FeatureBatches(stores, metainfo, whole), batch_size=None,
        collate_fn=_as_it_is,
        sampler=_RowBatches(len(stores[0]), len(stores), size, shuffle,
                            drop_last, seed))


def _as_it_is(batch: dict) -> dict:
    return batch


def takes_whole(model: nn.Module, store: FeatureStore) -> bool:
    """Whether the head's loss is the same for a batch's labels as a whole.

    Asked of the head itself, on a few rows: its loss may look at samples.
    """
    if store.labels.ndim > 1:  # scores of each image
        return False
    rows = np.arange(min(len(store), 4))
    model.eval()

    def losses(whole: bool) -> dict:
        few = FeatureBatches([_Few(store, rows)], {}, whole)[rows]
        with torch.no_grad():
            return model(**model.data_preprocessor(few), mode='loss')

    each = losses(False)
    try:
        whole = losses(True)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train()
    return whole.keys() == each.keys() and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(each[key]))
        for key, value in whole.items())


class _Few:
    """The first rows of a store."""

    def __init__(self, store: FeatureStore, rows: np.ndarray) -> None:
        self.features, self.labels = store.features[rows], store.labels[rows]

    def __len__(self) -> int:
        return len(self.labels)
