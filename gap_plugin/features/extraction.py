"""One pass over a dataset: images to pooled features in a store."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, get_dist_info
from mmengine.registry import FUNCTIONS
from torch import nn
from torch.utils.data import DataLoader

from ..engine.building import model_config
from ..engine.device import autocast
from ..host import versions
from ..progress import bar
from ..version import __version__
from .fixed_part import FixedPart, weights_of
from .images import (
    Bad,
    BadImages,
    Rows,
    build_dataset,
    check_split,
    data_list,
    described,
    loader_config,
    name_below,
    told,
)
from .store import FeatureStore, remove
from .store_writer import StoreWriter


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
        amp: Whether to run under autocast (float16 on a GPU and MPS,
            bfloat16 on a CPU).
        skip_bad: Whether unreadable images are left out.
        force: Whether a store that something else has made is replaced.
        view: Number of an augmented pass, 0 or more, by the split's own
            pipeline; None for the test pipeline.

    Returns:
        The store, complete.

    Raises:
        BadImages: If images cannot be read, and are not left out, or none
            is left. What could be read is kept for the next run.
        ValueError: If the config, the data or the store does not fit.
        OSError: If the disk is full.
    """
    if dtype not in ('float32', 'float16'):
        raise ValueError(f"dtype must be 'float32' or 'float16', got "
                         f'{dtype!r}.')
    loader = loader_config(cfg, split, view is not None)
    part = FixedPart(model)
    dataset = build_dataset(loader, split, model)
    names, labels, files = data_list(dataset)
    check_split(labels, model, split)
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    root, images = described(names, files)
    source = getattr(model.backbone, 'data_source', None)
    made_by = dict(
        weights=weights_of(part),
        backbone=_hash(cfg.model.get('backbone')),
        neck=part.necks,
        preprocessor=_hash([model_config(cfg).get('data_preprocessor'), {
            name: value.tolist()
            for name, value in part.data_preprocessor.named_buffers()}]),
        # the transforms of ours follow the network's description
        pipeline=_hash([loader['dataset'], source]),
        # what these say of features, and not of the place of files
        network=_hash(_without(cfg.model.get('backbone'), _ORIGIN)),
        transforms=_hash([_without(
            loader['dataset'], _NAMES + (_PLACE if root else ())), source]),
        root=root,
        batch_size=loader['batch_size'], dtype=dtype, amp=amp,
        versions=dict(versions(), gap_plugin=__version__),
        **({} if view is None else dict(view=view, seed=seed)))

    metainfo = {key: dataset.metainfo[key] for key in ('classes', )
                if key in dataset.metainfo}

    def fingerprint_of(chosen: np.ndarray) -> dict:
        known = None if labels is None else labels[chosen].tolist()
        return dict(
            made_by, rows=len(chosen),
            data=_hash([[names[i] for i in chosen], known]),
            images=_hash([[images[i] for i in chosen], known]))

    folder = Path(folder)
    if folder.exists() and not force:  # no image is read
        store = FeatureStore(folder)
        skipped = set(store.description['skipped'] if skip_bad else ())
        former = store.fingerprint.get('root')
        if former:  # the images may have moved
            skipped = {name_below(former, name) for name in skipped}
        fingerprint = fingerprint_of(np.array(
            [i for i, name in enumerate(names) if (
                images[i][0] if former else name) not in skipped]))
        store.check(fingerprint)
        # labels are the same; what their classes are called, the data say
        store.description['metainfo'] = metainfo
        return store
    plan = fingerprint_of(np.arange(len(names)))
    rank, world = get_dist_info()
    if force and rank == 0:
        remove(folder, unless=plan)
    barrier()
    if folder.exists():
        return FeatureStore(folder)

    def refuse(bad: dict[int, str]) -> None:
        raise BadImages(f'{told(bad, names, split)}; ' + (
            'check data_root, and the loader of the config.'
            if len(bad) == len(names) else
            'remove or replace them and use force=True, or leave them out '
            'with skip_bad=True.'))

    rows = Rows(dataset, names, view, seed)
    block = loader['batch_size']
    first = rows.first(len(names) if skip_bad else block)
    if first is None:
        refuse(rows.bad())
    device = next(part.parameters()).device
    precision = autocast(device, amp)

    def features_of(batch: dict) -> np.ndarray:
        with precision:
            return part(batch).float().cpu().numpy()

    # a copy: preprocessors write scores into samples, and this one comes again
    width = features_of(_collate(loader)([copy.deepcopy(first)])).shape[1]
    writer = StoreWriter(folder, len(names), width, dtype, block)
    if rank == 0:
        writer.prepare(labels, names, plan)
    barrier()
    blocks = [int(b) for b in writer.missing() if b % world == rank]
    barrier()  # the flags are read by all before one is set
    shown = split if view is None else f'{split}, view {view}'
    bad: dict[int, str] = {}
    with bar(sum(map(writer.rows_in, blocks)), shown,
             shown=rank == 0) as advance:
        for index, (batch, reasons) in zip(blocks, _batches(
                loader, rows, blocks, device.type == 'cuda'),
                                           strict=True):
            found = {index * block + i: reason
                     for i, reason in enumerate(reasons) if reason}
            bad |= found
            if batch is not None:
                features = np.zeros((len(reasons), width), np.float32)
                features[[not reason for reason in reasons]] = features_of(
                    batch)
                writer.write(index, features, whole=not found)
            elif not skip_bad:  # hardly any other batch will be better
                refuse(bad)
            advance(len(reasons))
    for part_of in all_gather_object(bad):
        bad |= part_of
    if bad and not skip_bad:
        refuse(bad)
    if rank == 0:
        kept = np.array([row for row in range(len(names)) if row not in bad])
        writer.finish(
            fingerprint_of(kept), sorted(bad), in_tuple=part.in_tuple,
            skipped=sorted({names[row] for row in bad}), metainfo=metainfo)
        if bad:
            warnings.warn(f'{told(bad, names, split)}; left out.',
                          stacklevel=2)
    barrier()
    return FeatureStore(folder)


def _collate(loader: dict) -> Any:
    given = dict(loader.get('collate_fn') or dict(type='default_collate'))
    kind = given.pop('type')
    return partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind,
                   **given)


def _good(samples: list, collate: Callable) -> tuple[Any, list[str | None]]:
    """The batch of what could be read, and why not the others."""
    reasons = [s.reason if isinstance(s, Bad) else None for s in samples]
    good = [s for s in samples if not isinstance(s, Bad)]
    return collate(good) if good else None, reasons


def _batches(loader: dict, rows: Rows, blocks: list[int],
             cuda: bool) -> DataLoader:
    """Whole blocks, in order, so that a row's batch mates are always the
    same, and its features with them.
    """
    size, count = loader['batch_size'], len(rows.names)
    return DataLoader(
        rows, collate_fn=partial(_good, collate=_collate(loader)),
        num_workers=loader.get('num_workers', 0),
        # of no use elsewhere, and MPS warns of it
        pin_memory=cuda and loader.get('pin_memory', False),
        batch_sampler=[range(b * size, min((b + 1) * size, count))
                       for b in blocks])


#: Arguments of a backbone that say where its weights come from, which stand
#: in the fingerprint themselves, or what is trained of it.
_ORIGIN = ('pretrained', 'checkpoint_path', 'checkpoint_key', 'init_cfg',
           'frozen_stages', 'norm_eval', 'with_cp')
#: Arguments of a dataset that say what its classes are called, and where its
#: files are.
_NAMES = ('classes', 'metainfo')
_PLACE = ('data_root', 'data_prefix', 'ann_file')


def _without(config: Any, keys: Collection[str]) -> Any:
    """A config without some keys, at any depth."""
    if isinstance(config, dict):
        return {key: _without(value, keys) for key, value in config.items()
                if key not in keys}
    if isinstance(config, (list, tuple)):
        return [_without(value, keys) for value in config]
    return config


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
