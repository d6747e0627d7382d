"""A split: its stored features, and its images as people see them."""

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch import nn

from ..features.images import (
    build_dataset,
    data_list,
    described,
    loader_config,
    name_below,
    refuse_unlabelled,
)
from ..features.store import FeatureStore


class Split:
    """Rows of a store, and the images that they were made of.

    Args:
        name: ``'train'``, ``'val'`` or ``'test'``.
        store: Its features, as :func:`~gap_plugin.features.extract` gives
            them for this config.
        cfg: The config.
        model: The classifier.

    Attributes:
        names (list[str]): Of the images, in the order of the rows.
        files (list[int]): Rows whose names are those of local files.
        labels (np.ndarray): ``(N, )``, class indices.

    Raises:
        ValueError: If its images have no label, or several.
    """

    def __init__(self, name: str, store: FeatureStore, cfg: Config,
                 model: nn.Module) -> None:
        self.name, self.store = name, store
        self.dataset = build_dataset(loader_config(cfg, name), name, model)
        names, labels, files = data_list(self.dataset)
        check_one_label(labels, name)
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
        self._originals = Originals(self.dataset, model)


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

    def sample(self, row: int) -> dict:
        """An image as a dataloader takes it."""
        return self.dataset[self._places[row]]

    def transform(self, image: np.ndarray) -> np.ndarray:
        """What the transforms make of a loaded image, ``(H, W, C)``."""
        return self._originals.transform(image)


def check_one_label(labels: np.ndarray | None, split: str) -> None:
    """Refuse images that have no label, or several.

    Raises:
        ValueError: With what a report takes.
    """
    refuse_unlabelled(labels, split, 'a report')
    if labels.ndim > 1:
        raise ValueError(
            f'the images of {split!r} have several labels each: a report is '
            'of images that are of one class.')


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
        self._steps = list(inner.pipeline.transforms)
        self._bgr = bool(getattr(model.data_preprocessor, 'to_rgb', False))
        self._loaded = False  # whether a step has loaded it

    def array(self, row: int) -> np.ndarray | None:
        """An image as it is loaded; None if it cannot be read now."""
        results, steps = self.dataset.get_data_info(row), self._steps
        try:
            self._loaded = 'img' not in results
            for step in steps:
                if 'img' in results:
                    break
                results = step(results)
            return np.asarray(results['img'])
        except Exception:  # noqa: BLE001 loaders raise all kinds
            return None

    def rgb(self, row: int) -> np.ndarray | None:
        """An image to look at, ``(H, W, 3)`` of uint8.

        Of more than three channels, the first three are shown; values of
        other types from the lowest to the highest one.
        """
        found = self.array(row)
        if found is None or found.ndim not in (2, 3) or not found.size:
            return None
        if found.dtype != np.uint8:
            found = found.astype(np.float64)
            lowest, highest = np.nanmin(found), np.nanmax(found)
            found = np.nan_to_num(
                255 * (found - lowest) / ((highest - lowest) or 1)
            ).astype(np.uint8)
        if found.ndim == 2:
            found = found[..., None]
        if found.shape[2] < 3:
            return np.repeat(found[..., :1], 3, axis=2)
        found = found[..., :3]
        # files are loaded as BGR
        return np.ascontiguousarray(
            found[..., ::-1] if self._loaded or self._bgr else found)

    def transform(self, image: np.ndarray) -> np.ndarray:
        """What the transforms make of a loaded image, ``(H, W, C)``."""
        results: Any = dict(img=image, img_shape=image.shape[:2],
                            ori_shape=image.shape[:2])
        loading = True
        for step in self._steps:
            loading = loading and type(step).__name__.startswith('Load')
            if not loading:
                results = step(results)
        return np.moveaxis(results['inputs'].numpy(), 0, -1)
