"""The images of a split, and what a config says of them."""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset

from ..datasets import bind_pipeline, source_of
from ..datasets.checks import check_datasets, check_folder
from ..datasets.loading import REPLACE_IT, cannot_read
from ..engine.chance import seeded
from ..files import of_each
from ..messages import SHOWN, first_line
from ..models.checks import check_labels

SPLITS = ('train', 'val', 'test')


def loader_config(cfg: Config, split: str, augmented: bool = False) -> dict:
    """The dataloader of a split, with the *test* pipeline.

    Args:
        cfg: The config.
        split: Which one.
        augmented: Whether its own pipeline is kept.

    Raises:
        ValueError: If the config has no such split, or no test pipeline.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}.')
    loader = cfg.get(f'{split}_dataloader')
    plain = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None:
        raise ValueError(f'the config has no {split}_dataloader: add it, or '
                         f'leave {split!r} out.')
    if plain is None:
        raise ValueError('the config has no test_dataloader and no '
                         'val_dataloader, whose pipeline the images of '
                         f'{split!r} are read by: add one.')
    loader, plain = loader.to_dict(), plain.to_dict()
    loader['batch_size'] = plain['batch_size']
    dataset, pipeline = loader['dataset'], plain['dataset']
    while 'dataset' in pipeline:
        pipeline = pipeline['dataset']
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    for each in dataset.get('datasets', [dataset]):
        if not augmented:
            each['pipeline'] = pipeline['pipeline']
        each['test_mode'] = True  # no other sample for one that fails
    return loader


def build_dataset(loader: dict, split: str,
                  model: nn.Module | None = None) -> BaseDataset:
    """The dataset of a dataloader's config.

    Args:
        loader: That config.
        split: Of which split.
        model: Whose images it gives; None if none are loaded.

    Raises:
        ValueError: If it is empty.
    """
    empty = (f'the split {split!r} is empty: check data_root and ann_file of '
             'its dataset.')
    try:
        dataset = DATASETS.build(loader['dataset'])
    except ValueError as error:
        if 'at least one array' in str(error):  # MMEngine packs no samples
            raise ValueError(empty) from None
        raise
    if not len(dataset):
        raise ValueError(empty)
    check_folder(dataset, split)
    source = source_of(model)
    if source is not None:
        bind_pipeline(dataset, source)
    return dataset


def refuse_unlabelled(labels: np.ndarray | None, split: str,
                      needs: str = 'a probe') -> None:
    """Refuse images without labels.

    Args:
        labels: Of the images, if they have some.
        split: Of which split.
        needs: What needs them.

    Raises:
        ValueError: With what to do.
    """
    if labels is None:
        raise ValueError(
            f'the images of {split!r} have no labels, which {needs} needs: '
            'give its dataset some (with_label=True of CustomDataset, and '
            'class folders or a list), and extract again with force=True.')


def check_split(labels: np.ndarray | None, model: nn.Module,
                split: str) -> None:
    """Refuse labels that the model's head has no class for.

    Raises:
        ValueError: With the range of the labels.
    """
    classes = getattr(getattr(model, 'head', None), 'num_classes', None)
    if classes is not None and labels is not None:
        scored = labels.ndim == 2
        lowest, highest = ((0, labels.shape[1] - 1) if scored else
                           (int(labels.min()), int(labels.max())))
        check_labels(lowest, highest, classes, 'the head',
                     f'the split {split!r}', scored)


class Samples(NamedTuple):
    """What a dataset tells of its samples.

    Attributes:
        names: Of all.
        labels: Classes ``(N, )``, scores ``(N, K)``, or None for none.
        files: Those whose names are those of local files.
    """

    names: list[str]
    labels: np.ndarray | None
    files: list[int]


def data_list(dataset: BaseDataset) -> Samples:
    """Name and label of every sample, without loading an image.

    Raises:
        ValueError: If the dataset does not tell them.
    """
    names, labels, files = [], [], []
    for i in range(len(dataset)):
        try:
            info = dataset.get_data_info(i)
        except AttributeError:
            raise ValueError(
                f'{type(dataset).__name__} has no get_data_info, which tells '
                'its images: use a dataset of MMPretrain, such as '
                'CustomDataset.') from None
        if 'gt_label' in info:
            labels.append(info['gt_label'])
        names.append(str(info.get('img_path', i)))
        if 'img' not in info and '://' not in names[-1]:
            files.append(i)
    if not labels:
        return Samples(names, None, files)
    if len(labels) < len(names):
        raise ValueError(f'{len(names) - len(labels)} of {len(names)} images '
                         'have no label: give all of them one, or none.')
    if np.ndim(labels[0]) == 0:
        return Samples(names, np.asarray(labels, np.int64), files)
    classes = len(dataset.metainfo['classes'])  # lists of classes per image
    scores = np.zeros((len(labels), classes), np.float32)
    for row, label in enumerate(labels):
        scores[row, label] = 1
    return Samples(names, scores, files)


def described(names: list[str], files: list[int]) -> tuple[str, list]:
    """What stands for images: their names below a folder, size and time.

    Args:
        names: Of all samples.
        files: Those that are local files.

    Returns:
        The folder that all of them lie in, and for each image its name there
        and what :func:`os.stat` says of it; an empty folder, and the names
        as they are, where some are no files.
    """
    # what the first and the last name have in common, all have
    root = os.path.dirname(os.path.commonprefix([min(names), max(names)]))
    if len(files) < len(names) or not root:
        return '', [[name, None] for name in names]
    return root, [[name_below(root, name), state] for name, state in zip(
        names, of_each(state_of, names), strict=True)]


def name_below(root: str, name: str) -> str:
    """The name of a file below a folder, the same on every system."""
    return name[len(root):].lstrip('/\\').replace(os.sep, '/')


def state_of(path: str) -> list[int]:
    """Size and time of change of a file: whether it is the same one."""
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]


def check_probed(cfg: Config, splits: Iterable[str]) -> dict[str, Samples]:
    """Refuse data that no probe can be trained on, ahead of the pass.

    Returns:
        Split -> its samples.

    Raises:
        ValueError: If a split is empty or has no labels, or as
            :func:`~gap_plugin.datasets.checks.check_datasets` does.
    """
    datasets = {split: build_dataset(loader_config(cfg, split), split)
                for split in splits}
    found = {split: data_list(dataset) for split, dataset in datasets.items()}
    for split, (_, labels, _) in found.items():
        refuse_unlabelled(labels, split)
    check_datasets(datasets)
    return found


class BadImages(ValueError):
    """Images that the loader of the config cannot read."""


@dataclass(frozen=True)
class Bad:
    """What stands for a sample that cannot be read: why."""

    reason: str


def told(bad: dict[int, str], names: list[str], split: str) -> str:
    """Which images cannot be read, and why, in one line."""
    few = ', '.join(f'{names[row]!r} ({bad[row]})'
                    for row in sorted(bad)[:SHOWN])
    return (f'{len(bad)} of {len(names)} images of {split!r} cannot be read: '
            f'{few}{", ..." if len(bad) > SHOWN else ""}')


class Rows(Dataset):
    """Samples of a dataset, :class:`Bad` for those that cannot be read.

    Of an augmented view, what is random depends on its number and the row
    alone, so that every order and share of the work gives the same.
    """

    def __init__(self, dataset: BaseDataset, names: list[str],
                 view: int | None = None, seed: int = 0) -> None:
        self.dataset, self.names = dataset, names
        self.view, self.seed = view, seed
        self._known: dict[int, dict | Bad] = {}

    def first(self, among: int) -> dict | None:
        """The first sample that can be read, None if there is none.

        It is not read again.

        Args:
            among: Of how many rows.
        """
        for row in range(min(among, len(self.names))):
            sample = self._known[row] = self[row]
            if not isinstance(sample, Bad):
                return sample
        return None

    def bad(self) -> dict[int, str]:
        """Rows that :meth:`first` could not read, and why."""
        return {row: sample.reason for row, sample in self._known.items()
                if isinstance(sample, Bad)}

    def __getitem__(self, row: int) -> dict | Bad:
        if row in self._known:
            return self._known[row]
        chance = (nullcontext() if self.view is None else
                  seeded(self.seed, self.view, row))
        try:
            with chance:
                return self.dataset[row]
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 loaders raise all kinds
            reason = first_line(error).removeprefix(
                cannot_read(self.names[row])).removesuffix(REPLACE_IT)
            if not isinstance(error, (OSError, ValueError)):
                reason = f'{type(error).__name__}: {reason}'
            return Bad(reason[:300])
