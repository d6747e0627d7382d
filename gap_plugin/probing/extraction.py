"""One pass over a dataset: images to pooled features in a store."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, worker_init_fn
from mmengine.dist import barrier, get_dist_info
from mmengine.registry import DATASETS, FUNCTIONS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .store import FeatureStore, StoreWriter, remove

SPLITS = ('train', 'val', 'test')


class FixedPart(nn.Module):
    """What a linear probe leaves as it is: preprocessor, backbone, pooling.

    Args:
        model: An ``ImageClassifier``, ours or stock. Of its neck, the parts
            without parameters and buffers that come first belong here.

    Attributes:
        necks (list[str]): Names of these parts in the model.
        in_tuple (bool): Whether what follows gets a tuple; known after a
            pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.data_preprocessor = model.data_preprocessor
        self.backbone = model.backbone
        self.pool = nn.Sequential()
        self.necks: list[str] = []
        self.in_tuple = True
        neck = getattr(model, 'neck', None)
        if neck is None:
            parts = {}
        elif isinstance(neck, nn.Sequential):
            parts = {f'neck.{name}': m for name, m in neck.named_children()}
        else:
            parts = {'neck': neck}
        for name, part in parts.items():
            if len(part.state_dict()):
                break
            self.necks.append(name)
            self.pool.append(part)
        self.eval()

    @torch.no_grad()
    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Features of a batch of the dataloader.

        Returns:
            ``(N, C)``.

        Raises:
            ValueError: If there is more than one map, or it is not pooled.
        """
        inputs = self.data_preprocessor(batch, training=False)['inputs']
        features = self.pool(self.backbone(inputs))
        self.in_tuple = isinstance(features, (tuple, list))
        if self.in_tuple:
            if len(features) != 1:
                raise ValueError(
                    f'the backbone gives {len(features)} maps, a store holds '
                    'one: give out_indices of the backbone one level.')
            (features, ) = features
        if features.ndim != 2:
            raise ValueError(
                f'features of shape {tuple(features.shape)} are not pooled: '
                'put a GAPNeck, or another pooling without parameters, '
                'first in the neck.')
        return features

    def fingerprint(self) -> str:
        """Of all weights and statistics."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'
                          .encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1)
                          .view(torch.uint8).numpy())
        return digest.hexdigest()


class _Rows(Dataset):
    """Chosen samples of a dataset, errors with the name of the image."""

    def __init__(self, dataset: BaseDataset, chosen: np.ndarray,
                 names: list[str]) -> None:
        self.dataset, self.chosen, self.names = dataset, chosen, names

    def __getitem__(self, row: int) -> dict:
        index = int(self.chosen[row])
        try:
            sample = self.dataset[index]
        except (OSError, ValueError, SyntaxError, AttributeError) as error:
            # cv2 gives None for what it cannot read: an AttributeError later
            lines = str(error).splitlines() or [type(error).__name__]
            raise ValueError(
                f'{self.names[row]!r} cannot be read ({lines[0][:160]}): '
                'remove or replace it.') from None
        return sample


def loader_config(cfg: Config, split: str) -> dict:
    """The dataloader of a split, with the *test* pipeline.

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
        each['pipeline'] = pipeline['pipeline']
        each['test_mode'] = True  # no other sample for one that fails
    return loader


def extract(model: nn.Module, cfg: Config, split: str,
            folder: str | Path, *, dtype: str = 'float32', amp: bool = False,
            skip_bad: bool = False, force: bool = False) -> FeatureStore:
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

    Returns:
        The store, complete.

    Raises:
        ValueError: If the config, the data or the store does not fit.
        OSError: If the disk is full.
    """
    if dtype not in ('float32', 'float16'):
        raise ValueError(f"dtype must be 'float32' or 'float16', got "
                         f'{dtype!r}.')
    loader = loader_config(cfg, split)
    part = FixedPart(model)
    dataset = _dataset(loader, split)
    names, labels = _data_list(dataset)
    check_labels(labels, getattr(getattr(model, 'head', None), 'num_classes',
                                 None), split)
    chosen = _readable(dataset, names, split, skip_bad)
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
        amp=amp, versions=_versions())
    rank, world = get_dist_info()
    folder = Path(folder)
    if force and rank == 0 and not _matches(folder, fingerprint):
        remove(folder)
    barrier()
    if folder.exists():
        store = FeatureStore(folder)
        store.check(fingerprint)
        return store

    rows = _Rows(dataset, chosen, names)
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
    for index, batch in zip(blocks, _progress(
            _batches(loader, rows, blocks), writer, blocks, split, rank),
            strict=True):
        writer.write(index, features_of(batch))
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


def check_labels(labels: np.ndarray, num_classes: int | None,
                 split: str) -> None:
    """Refuse labels that the head has no class for.

    Raises:
        ValueError: With the range of the labels.
    """
    if num_classes is None:
        return
    if labels.ndim == 2:
        lowest, highest = 0, labels.shape[1] - 1
    else:
        lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f'the split {split!r} has labels from {lowest} to {highest}, but '
            f'num_classes of the head is {num_classes}: labels count from 0, '
            'set num_classes to the number of classes.')


def _data_list(dataset: BaseDataset) -> tuple[list[str], np.ndarray]:
    """Name and label of every sample, without loading an image.

    Raises:
        ValueError: If the dataset does not tell them.
    """
    names, labels = [], []
    for i in range(len(dataset)):
        try:
            info = dataset.get_data_info(i)
            label = info['gt_label']
        except (AttributeError, KeyError):
            raise ValueError(
                f'{type(dataset).__name__} gives no gt_label by '
                'get_data_info: use a dataset of MMPretrain, such as '
                'CustomDataset.') from None
        names.append(str(info.get('img_path', i)))
        labels.append(label)
    if np.ndim(labels[0]) == 0:
        return names, np.asarray(labels, np.int64)
    classes = len(dataset.metainfo['classes'])  # lists of classes per image
    scores = np.zeros((len(labels), classes), np.float32)
    for row, label in enumerate(labels):
        scores[row, label] = 1
    return names, scores


def _readable(dataset: BaseDataset, names: list[str], split: str,
              skip_bad: bool) -> np.ndarray:
    """Indices of the samples whose images open.

    Raises:
        ValueError: If some do not, and are not to be skipped.
    """
    bad = []
    for i, name in enumerate(names):
        if 'img' in dataset.get_data_info(i) or '://' in name:
            continue
        try:
            with Image.open(name) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError):
            bad.append(i)
    if bad:
        some = ', '.join(repr(names[i]) for i in bad[:3])
        some += ', ...' if len(bad) > 3 else ''
        told = (f'{len(bad)} of {len(names)} images of {split!r} cannot be '
                f'read: {some}')
        if not skip_bad or len(bad) == len(names):
            raise ValueError(f'{told}; remove them, or leave them out with '
                             '--skip-bad.')
        print(f'{told}; left out.')
    return np.setdiff1d(np.arange(len(names)), bad)


def _collate(loader: dict) -> Any:
    kind = (loader.get('collate_fn') or dict(type='default_collate'))['type']
    return FUNCTIONS.get(kind) if isinstance(kind, str) else kind


def _batches(loader: dict, rows: _Rows, blocks: list[int]) -> DataLoader:
    """Whole blocks, in order, so that a row's batch mates are always the
    same, and its features with them.
    """
    size, count = loader['batch_size'], len(rows.names)
    workers = loader.get('num_workers', 0)
    return DataLoader(
        rows, collate_fn=_collate(loader), num_workers=workers,
        pin_memory=loader.get('pin_memory', False),
        worker_init_fn=_init_worker if workers else None,
        batch_sampler=[range(b * size, min((b + 1) * size, count))
                       for b in blocks])


def _init_worker(worker: int) -> None:
    worker_init_fn(worker, 0, 0, 0)


def _progress(batches: DataLoader, writer: StoreWriter, blocks: list[int],
              split: str, rank: int) -> Iterator[dict]:
    """Images per second and time left."""
    with tqdm(total=sum(min(writer.block, writer.rows - b * writer.block)
                        for b in blocks),
              desc=split, unit='image', disable=rank > 0) as bar:
        for index, batch in zip(blocks, batches, strict=True):
            yield batch
            bar.update(min(writer.block, writer.rows - index * writer.block))


def _matches(folder: Path, fingerprint: dict) -> bool:
    try:
        FeatureStore(folder).check(fingerprint)
    except ValueError:
        return False
    return True


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in ('torch', 'timm', 'mmpretrain', 'onedl-mmpretrain'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
