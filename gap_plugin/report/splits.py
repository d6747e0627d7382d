"""A split: its stored features, and its images as people see them."""

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from torch import nn

from ..datasets.checks import check_same_classes
from ..features.images import (
    build_dataset,
    check_split,
    data_list,
    described,
    loader_config,
    name_below,
    refuse_unlabelled,
)
from ..features.store import FeatureStore
from ..visualization.explaining import as_shown


class Split:
    """Images of a split, and rows of a store that were made of them.

    Args:
        name: ``'train'``, ``'val'`` or ``'test'``.
        cfg: The config.
        model: The classifier.

    Attributes:
        names (list[str]): Of the images, in the order of the rows.
        files (list[int]): Rows whose names are those of local files.
        labels (np.ndarray): ``(N, )``, class indices.
        classes (Sequence[str] | None): Their names, if they are known.
        pipeline (Compose): Of the test.
        store (FeatureStore): Of :meth:`open`.

    Raises:
        ValueError: If its images have no label, or several, or one that the
            model has no class for.
    """

    store: FeatureStore

    def __init__(self, name: str, cfg: Config, model: nn.Module) -> None:
        self.name = name
        self.dataset = build_dataset(loader_config(cfg, name), name, model)
        self.names, self.labels, self.files = data_list(self.dataset)
        _check_one_label(self.labels, name)
        check_split(self.labels, model, name)
        self.classes = self.dataset.metainfo.get('classes')
        self._places = [*range(len(self.names))]
        self._originals = Originals(self.dataset, model)
        self.pipeline = self._originals.pipeline

    def open(self, store: FeatureStore) -> None:
        """Take the rows of a store, as extraction gives it for this split.

        Images that were left out there are left out here.
        """
        names, files, self.store = self.names, self.files, store
        skipped, known = set(store.description['skipped']), names
        former = store.fingerprint.get('root')
        if skipped and former:  # as extraction tells them, if they moved
            skipped = {name_below(former, each) for each in skipped}
            known = [image for image, _ in described(names, files)[1]]
        self._places = [i for i, n in enumerate(known) if n not in skipped]
        self.names = [names[i] for i in self._places]
        rows = {place: row for row, place in enumerate(self._places)}
        self.files = [rows[i] for i in files if i in rows]
        self.labels = np.asarray(store.labels)


    def __len__(self) -> int:
        return len(self.names)

    def told(self, row: int) -> str:
        """The name of an image; of data in memory, its split and number."""
        place = str(self._places[row])
        name = self.names[row]
        return f'{self.name}/{place}' if name == place else name

    def array(self, row: int) -> np.ndarray | None:
        """An image as it is loaded; None if it cannot be read now."""
        return self._originals.array(self._places[row])

    def rgb(self, row: int) -> np.ndarray | None:
        """An image to look at, ``(H, W, 3)`` of uint8, or None."""
        return self._originals.rgb(self._places[row])

    def info(self, row: int) -> dict[str, Any]:
        """What the pipeline takes of an image."""
        return self.dataset.get_data_info(self._places[row])


def _check_one_label(labels: np.ndarray | None, split: str) -> None:
    """Refuse images that have no label, or several.

    Raises:
        ValueError: With what a report takes.
    """
    refuse_unlabelled(labels, split, 'a report')
    if labels.ndim > 1:
        raise ValueError(
            f'the images of {split!r} have several labels each: a report is '
            'of images that are of one class.')


def find_splits(cfg: Config, model: nn.Module,
                split: str) -> dict[str, Split]:
    """The splits of a report: the training images, if any, and another one.

    Args:
        cfg: The config.
        model: The classifier.
        split: What is evaluated.

    Raises:
        ValueError: If their classes differ, or as :class:`Split` does.
    """
    names = ['train'] * bool(cfg.get('train_dataloader')) + [split]
    found = {name: Split(name, cfg, model) for name in names}
    if 'train' in found:
        check_same_classes({name: side.dataset
                            for name, side in found.items()})
    return found


class Originals:
    """Images of a dataset ahead of its transforms.

    Args:
        dataset: With the test pipeline.
        model: The classifier, whose preprocessor says which order of
            channels images have that the dataset holds in memory.
    """

    def __init__(self, dataset: BaseDataset, model: nn.Module) -> None:
        self.dataset = dataset
        inner: Any = dataset
        while not hasattr(inner, 'pipeline'):
            inner = (inner.dataset if hasattr(inner, 'dataset') else
                     inner.datasets[0])
        self.pipeline: Compose = inner.pipeline
        self._bgr = bool(getattr(model.data_preprocessor, 'to_rgb', False))
        self._loaded = False  # whether a step has loaded it

    def array(self, row: int) -> np.ndarray | None:
        """An image as it is loaded; None if it cannot be read now."""
        results = self.dataset.get_data_info(row)
        try:
            self._loaded = 'img' not in results
            for step in self.pipeline.transforms:
                if 'img' in results:
                    break
                results = step(results)
            return np.asarray(results['img'])
        except Exception:  # noqa: BLE001 loaders raise all kinds
            return None

    def rgb(self, row: int) -> np.ndarray | None:
        """An image to look at, ``(H, W, 3)`` of uint8, RGB, or None."""
        found = self.array(row)
        if found is None or found.ndim not in (2, 3) or not found.size:
            return None
        # files are loaded as BGR
        return as_shown(found, self._loaded or self._bgr)
