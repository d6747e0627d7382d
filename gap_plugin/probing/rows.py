"""Stored features as batches of tensors, in the order of a sampler."""

import itertools
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from ..features.store import FeatureStore


class Rows:
    """Rows of a store, or of several views of the same images.

    Args:
        stores: The features. Epoch e takes view e, and starts over.
        device: Where batches go. Features lie on an accelerator as a whole
            where half of its free memory holds them.
        metainfo: Of the dataset that they were extracted from.
        chosen: Indices of the rows that there are, None for all.

    Attributes:
        labels (torch.Tensor): Class indices ``(N, )`` or scores ``(N, K)``.
    """

    def __init__(self, stores: Sequence[FeatureStore], device: torch.device,
                 metainfo: dict | None = None,
                 chosen: np.ndarray | None = None) -> None:
        self.device, self.metainfo = device, metainfo or {}
        self._views = [_tensor(store.features, device) for store in stores]
        self._all_labels = torch.tensor(np.array(stores[0].labels))
        self._choose(chosen)

    def subset(self, chosen: np.ndarray) -> 'Rows':
        """Some of the rows, on the same memory."""
        found = object.__new__(Rows)
        found.__dict__.update(self.__dict__)
        found._choose(chosen if self._chosen is None else
                      self._chosen[chosen])
        return found

    def _choose(self, chosen: np.ndarray | None) -> None:
        self._chosen = None if chosen is None else torch.as_tensor(chosen)
        self.labels = (self._all_labels if chosen is None else
                       self._all_labels[self._chosen])

    # what samplers ask of a dataset
    def __len__(self) -> int:
        return len(self.labels)

    def get_cat_ids(self, index: int) -> list[int]:
        """Classes of a row."""
        label = self.labels[index]
        return [int(label)] if label.ndim == 0 else (
            label.nonzero().flatten().tolist())

    def get_gt_labels(self) -> np.ndarray:
        """Labels of all rows."""
        return self.labels.numpy()

    def get_data_info(self, index: int) -> dict:
        """What there is to know of a row without its features."""
        cats = self.get_cat_ids(index)
        return dict(sample_idx=index, gt_label=(
            cats[0] if self.labels.ndim == 1 else cats))

    def take(self, rows: torch.Tensor | slice,
             view: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Features ``(n, C)`` and labels of some rows."""
        labels = self.labels[rows].to(self.device)
        if self._chosen is not None:
            rows = self._chosen[rows]
        features = self._views[view % len(self._views)]
        x = (features[rows] if isinstance(rows, slice) else
             features.index_select(0, rows.to(features.device)))
        return x.to(self.device).float(), labels


def _tensor(features: np.ndarray, device: torch.device) -> torch.Tensor:
    with warnings.catch_warnings():  # a memory map is read only: so is this
        warnings.simplefilter('ignore', UserWarning)
        found = torch.from_numpy(np.asarray(features))
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        if found.nbytes < free / 2:
            return found.to(device)
    return found


class Batches:
    """Batches of row indices, as a dataloader of MMEngine draws them.

    Args:
        loader: The dataloader's config: ``batch_size``, ``drop_last``,
            ``sampler``, ``batch_sampler`` and ``num_batch_per_epoch`` count.
        rows: What is drawn from.
        seed: Of the sampler.

    Raises:
        ValueError: If there are fewer rows than a batch takes.
    """

    def __init__(self, loader: dict, rows: Rows, seed: int) -> None:
        size = loader['batch_size']
        if loader.get('num_batch_per_epoch'):  # as the runner: the first ones
            rows = rows.subset(np.arange(min(
                len(rows), loader['num_batch_per_epoch'] * size)))
        sampler = DATA_SAMPLERS.build(
            loader.get('sampler') or dict(type='DefaultSampler'),
            default_args=dict(dataset=rows, seed=seed))
        own = dict(sampler=sampler, batch_size=size)
        self._batches = (
            DATA_SAMPLERS.build(loader['batch_sampler'], default_args=own)
            if loader.get('batch_sampler') else
            BatchSampler(**own, drop_last=loader.get('drop_last', False)))
        # goes on where the last epoch has ended
        self._endless = (iter(self._batches)
                         if isinstance(sampler, InfiniteSampler) else None)
        self._sampler = sampler
        if not len(self):
            raise ValueError(f'{len(rows)} training images give no batch of '
                             f'{size}: set a smaller batch_size.')

    def __len__(self) -> int:
        return len(self._batches)

    def of(self, epoch: int) -> Iterator[torch.Tensor]:
        """The batches of an epoch."""
        if hasattr(self._sampler, 'set_epoch'):
            self._sampler.set_epoch(epoch)
        return map(torch.tensor, itertools.islice(
            self._endless or self._batches, len(self)))
