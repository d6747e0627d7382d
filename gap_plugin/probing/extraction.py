"""One pass over a dataset: images to pooled features in a store."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, get_dist_info
from mmengine.registry import DATASETS, FUNCTIONS
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..compat import versions
from ..datasets import some, unreadable
from ..models.messages import check_labels
from ..version import __version__
from .fixed_part import FixedPart
from .store import FeatureStore, StoreWriter, remove

SPLITS = ('train', 'val', 'test')


class _Rows(Dataset):
    """Chosen samples of a dataset, errors with the name of the image.

    Of an augmented view, what is random depends on its number and the row
    alone, so that every order and share of the work gives the same.
    """

    def __init__(self, dataset: BaseDataset, chosen: np.ndarray,
                 names: list[str], view: int | None, seed: int) -> None:
        self.dataset, self.chosen, self.names = dataset, chosen, names
        self.view, self.seed = view, seed

    def __getitem__(self, row: int) -> dict:
        index = int(self.chosen[row])
        chance = (nullcontext() if self.view is None else
                  _seeded(self.seed, self.view, row))
        try:
            with chance:
                sample = self.dataset[index]
        except (OSError, ValueError, SyntaxError, AttributeError) as error:
            # cv2 gives None for what it cannot read: an AttributeError later
            lines = str(error).splitlines() or [type(error).__name__]
            raise ValueError(
                f'{self.names[row]!r} cannot be read ({lines[0][:160]}): '
                'remove or replace it.') from None
        return sample


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Fixed random numbers of Python, numpy and torch; others afterwards."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def loader_config(cfg: Config, split: str, augmented: bool = False) -> dict:
    """The dataloader of a split, with the *test* pipeline.

    Args:
        cfg: The config.
        split: Which one.
        augmented: Whether its own pipeline is kept.

    Raises:
        ValueError: If the config has no such split.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}.')
    loader = cfg.get(f'{split}_dataloader')
    plain = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if loader is None or plain is None:
        raise ValueError(f'the config has no {split}_dataloader, or none to '
                         'take the test pipeline from: add it, or leave '
                         f'{split!r} out of --splits.')
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


def extract(model: nn.Module, cfg: Config, split: str,
            folder: str | Path, *, dtype: str = 'float32', amp: bool = False,
            skip_bad: bool = False, force: bool = False,
            view: int | None = None) -> FeatureStore:
    """Features of a split, from its store or by a pass over its images.

    Args:
        model: The classifier, with its weights.
        cfg: The config that it was built from.
        split: ``'train'``, ``'val'`` or ``'test'``.
        folder: Where the store is or is to be.
        dtype: ``'float32'`` or ``'float16'``.
        amp: Whether to run under autocast (float16 on a GPU, bfloat16 on a
            CPU).
        skip_bad: Whether unreadable images are left out.
        force: Whether a store that something else has made is replaced.
        view: Number of an augmented pass, 0 or more, by the split's own
            pipeline; None for the test pipeline.

    Returns:
        The store, complete.

    Raises:
        ValueError: If the config, the data or the store does not fit.
        OSError: If the disk is full.
    """
    if dtype not in ('float32', 'float16'):
        raise ValueError(f"dtype must be 'float32' or 'float16', got "
                         f'{dtype!r}.')
    loader = loader_config(cfg, split, view is not None)
    part = FixedPart(model)
    dataset = _dataset(loader, split)
    names, labels, files = _data_list(dataset)
    check_split(labels, model, split)
    chosen = _readable(names, files, split, skip_bad)
    names, labels = [names[i] for i in chosen], labels[chosen]

    fingerprint = dict(
        weights=part.fingerprint(),
        backbone=_hash(cfg.model.get('backbone')),
        neck=part.necks,
        preprocessor=_hash([cfg.model.get('data_preprocessor'), {
            name: value.tolist()
            for name, value in part.data_preprocessor.named_buffers()}]),
        # the transforms of ours follow the network's description
        pipeline=_hash([loader['dataset'], getattr(
            model.backbone, 'data_source', None)]),
        data=_hash([names, labels.tolist()]),
        rows=len(names), batch_size=loader['batch_size'], dtype=dtype,
        amp=amp, versions=dict(versions(), gap_plugin=__version__))
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    if view is not None:
        fingerprint.update(view=view, seed=seed)
    rank, world = get_dist_info()
    folder = Path(folder)
    if force and rank == 0 and not _matches(folder, fingerprint):
        remove(folder)
    barrier()
    if folder.exists():
        store = FeatureStore(folder)
        store.check(fingerprint)
        return store

    rows = _Rows(dataset, chosen, names, view, seed)
    device = next(part.parameters()).device
    autocast = torch.autocast(device.type) if amp else nullcontext()

    def features_of(batch: dict) -> np.ndarray:
        with autocast:
            return part(batch).float().cpu().numpy()

    width = features_of(_collate(loader)([rows[0]])).shape[1]
    writer = StoreWriter(folder, len(names), width, dtype,
                         loader['batch_size'])
    if rank == 0:
        writer.prepare(labels, names, fingerprint)
    barrier()
    blocks = [int(b) for b in writer.missing() if b % world == rank]
    barrier()  # the flags are read by all before one is set
    told = split if view is None else f'{split}, view {view}'
    with tqdm(total=sum(map(writer.rows_in, blocks)), desc=told,
              unit='image', disable=rank > 0) as bar:
        for index, batch in zip(blocks, _batches(loader, rows, blocks),
                                strict=True):
            features = features_of(batch)
            writer.write(index, features)
            bar.update(len(features))
    barrier()
    if rank == 0:
        writer.finish(fingerprint, in_tuple=part.in_tuple, metainfo={
            key: dataset.metainfo[key] for key in ('classes', )
            if key in dataset.metainfo})
    barrier()
    return FeatureStore(folder)


def _dataset(loader: dict, split: str) -> BaseDataset:
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
    return dataset


def check_split(labels: np.ndarray, model: nn.Module, split: str) -> None:
    """Refuse labels that the model's head has no class for.

    Raises:
        ValueError: With the range of the labels.
    """
    classes = getattr(getattr(model, 'head', None), 'num_classes', None)
    if classes is not None:
        scored = labels.ndim == 2
        lowest, highest = ((0, labels.shape[1] - 1) if scored else
                           (int(labels.min()), int(labels.max())))
        check_labels(lowest, highest, classes, 'the head',
                     f'the split {split!r}', scored)


def _data_list(
        dataset: BaseDataset) -> tuple[list[str], np.ndarray, list[int]]:
    """Name and label of every sample, without loading an image.

    Returns:
        Names, labels, and the samples whose names are those of local files.

    Raises:
        ValueError: If the dataset does not tell them.
    """
    names, labels, files = [], [], []
    for i in range(len(dataset)):
        try:
            info = dataset.get_data_info(i)
            labels.append(info['gt_label'])
        except (AttributeError, KeyError):
            raise ValueError(
                f'{type(dataset).__name__} gives no gt_label by '
                'get_data_info: use a dataset of MMPretrain, such as '
                'CustomDataset.') from None
        names.append(str(info.get('img_path', i)))
        if 'img' not in info and '://' not in names[-1]:
            files.append(i)
    if np.ndim(labels[0]) == 0:
        return names, np.asarray(labels, np.int64), files
    classes = len(dataset.metainfo['classes'])  # lists of classes per image
    scores = np.zeros((len(labels), classes), np.float32)
    for row, label in enumerate(labels):
        scores[row, label] = 1
    return names, scores, files


def _readable(names: list[str], files: list[int], split: str,
              skip_bad: bool) -> np.ndarray:
    """Indices of the samples whose images open.

    Raises:
        ValueError: If some do not, and are not to be skipped.
    """
    bad = set(unreadable(names[i] for i in files))
    left = [i for i, name in enumerate(names) if name not in bad]
    if bad:
        told = (f'{len(names) - len(left)} of {len(names)} images of '
                f'{split!r} cannot be read: {some(sorted(bad))}')
        if not skip_bad or not left:
            raise ValueError(f'{told}; remove them, or leave them out with '
                             '--skip-bad.')
        print(f'{told}; left out.')
    return np.asarray(left)


def _collate(loader: dict) -> Any:
    kind = (loader.get('collate_fn') or dict(type='default_collate'))['type']
    return FUNCTIONS.get(kind) if isinstance(kind, str) else kind


def _batches(loader: dict, rows: _Rows, blocks: list[int]) -> DataLoader:
    """Whole blocks, in order, so that a row's batch mates are always the
    same, and its features with them.
    """
    size, count = loader['batch_size'], len(rows.names)
    return DataLoader(
        rows, collate_fn=_collate(loader),
        num_workers=loader.get('num_workers', 0),
        pin_memory=loader.get('pin_memory', False),
        batch_sampler=[range(b * size, min((b + 1) * size, count))
                       for b in blocks])


def _matches(folder: Path, fingerprint: dict) -> bool:
    try:
        FeatureStore(folder).check(fingerprint)
    except ValueError:
        return False
    return True


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
