"""One pass over a dataset: images to pooled features in a store."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier, get_dist_info
from torch import Tensor, nn

from ..progress import bar
from .batches import batches, collate_of
from .engines import ENGINES, Engine, fastest, is_of
from .fingerprint import Fingerprint, weights_of
from .fixed_part import FixedPart
from .images import (
    BadImages,
    Rows,
    build_dataset,
    check_split,
    data_list,
    loader_config,
    name_below,
    told,
)
from .store import FeatureStore, remove
from .store_writer import StoreWriter

#: Blocks that wait for the disk at most.
_WAITING = 4


def extract(model: nn.Module, cfg: Config, split: str, folder: str | Path, *,
            view: int | None = None, **options: Any) -> FeatureStore:
    """Features of one split, by an :class:`Extraction` with some options."""
    return Extraction(model, cfg, **options)(split, folder, view)


class Extraction:
    """Features of splits, from their stores or by passes over their images.

    Args:
        model: The classifier, with its weights.
        cfg: The config that it was built from.
        engine: One of :data:`~.engines.ENGINES`.
        count: Images of all passes, for whether an engine pays that takes
            time to start; None for those of the first pass.
        dtype: ``'float32'`` or ``'float16'``.
        amp: Whether to run under
            :func:`~gap_plugin.engine.device.autocast`.
        skip_bad: Whether unreadable images are left out.
        force: Whether a store that something else has made is replaced.

    Raises:
        ValueError: If one of them is out of its range.
    """

    def __init__(self, model: nn.Module, cfg: Config, *,
                 engine: str = 'auto', count: int | None = None,
                 dtype: str = 'float32', amp: bool = False,
                 skip_bad: bool = False, force: bool = False) -> None:
        for name, value, allowed in (
                ('dtype', dtype, ('float32', 'float16')),
                ('engine', engine, ENGINES)):
            if value not in allowed:
                raise ValueError(f'{name}={value!r} must be one of '
                                 f'{", ".join(allowed)}.')
        self._model, self._cfg = model, cfg
        self._asked, self._count = engine, count
        self._dtype, self._amp = dtype, amp
        self._skip_bad, self._force = skip_bad, force
        self._part = FixedPart(model)
        self._weights = weights_of(self._part)
        self._engine: Engine | None = None

    def __call__(self, split: str, folder: str | Path,
                 view: int | None = None) -> FeatureStore:
        """Features of a split.

        Args:
            split: ``'train'``, ``'val'`` or ``'test'``.
            folder: Where the store is or is to be.
            view: Number of an augmented pass, 0 or more, by the split's own
                pipeline; None for the test pipeline.

        Returns:
            The store, complete.

        Raises:
            BadImages: If images cannot be read, and are not left out, or
                none is left. What could be read is kept for the next run.
            ValueError: If the config, the data, the store or the engine does
                not fit.
            OSError: If the disk is full.
        """
        loader = loader_config(self._cfg, split, view is not None)
        seed = (self._cfg.get('randomness') or {}).get('seed') or 0
        dataset = build_dataset(loader, split, self._model)
        samples = data_list(dataset)
        check_split(samples.labels, self._model, split)
        fingerprint = Fingerprint(
            self._part, self._weights, self._cfg, loader, samples,
            dtype=self._dtype, amp=self._amp,
            **({} if view is None else dict(view=view, seed=seed)))
        metainfo = {key: dataset.metainfo[key] for key in ('classes', )
                    if key in dataset.metainfo}
        folder = Path(folder)
        if folder.exists() and not self._force:  # no image is read
            store = self._known(folder, fingerprint)
            # labels are the same; what classes are called, the data say
            store.description['metainfo'] = metainfo
            return store
        if self._force and get_dist_info()[0] == 0:
            remove(folder, unless=fingerprint.of(
                range(len(samples.names)), engine=self._asked))
        barrier()
        if folder.exists():
            return FeatureStore(folder)
        return self._pass(
            split if view is None else f'{split}, view {view}', loader,
            Rows(dataset, samples.names, view, seed), folder, fingerprint,
            metainfo)

    def _known(self, folder: Path, fingerprint: Fingerprint) -> FeatureStore:
        """A store that is there, if it is the one."""
        store = FeatureStore(folder)
        skipped = set(store.description['skipped'] if self._skip_bad else ())
        made = store.fingerprint
        names = fingerprint.samples.names
        if made.get('root'):  # the images may have moved
            skipped = {name_below(made['root'], name) for name in skipped}
            names = [name for name, _ in fingerprint.images]
        engine = made.get('engine')
        store.check(fingerprint.of(
            [i for i, name in enumerate(names) if name not in skipped],
            engine=engine if is_of(engine or 'torch', self._asked)
            else self._asked))
        return store

    def _pass(self, name: str, loader: dict, rows: Rows, folder: Path,
              fingerprint: Fingerprint, metainfo: dict) -> FeatureStore:
        """Read the images, and store their features."""
        names, block = rows.names, loader['batch_size']

        def refuse(bad: dict[int, str]) -> None:
            raise BadImages(f'{told(bad, names, name)}; ' + (
                'check data_root, and the loader of the config.'
                if len(bad) == len(names) else
                'remove or replace them and use force=True, or leave them '
                'out with skip_bad=True.'))

        first = rows.first(len(names) if self._skip_bad else block)
        if first is None:
            refuse(rows.bad())
        collate = partial(_unlabelled, collate_of(loader))
        width = self._part.width_of(self._part.images(collate([first])))
        writer = StoreWriter(folder, len(names), width, self._dtype, block)
        rank, world = get_dist_info()
        if rank == 0:
            writer.prepare(fingerprint.samples.labels, names,
                           fingerprint.of(range(len(names))))
        barrier()
        blocks = [int(b) for b in writer.missing() if b % world == rank]
        engines = writer.engines()
        barrier()  # both are read by all before one is changed
        bad: dict[int, str] = {}
        found_in = batches(rows, loader, blocks,
                           next(self._part.parameters()).is_cuda, collate)
        with (bar(sum(map(writer.rows_in, blocks)), name,
                  shown=rank == 0) as advance, _in_a_thread() as later):
            for index, (batch, reasons) in zip(blocks, found_in, strict=True):
                found = {index * block + i: reason
                         for i, reason in enumerate(reasons) if reason}
                bad |= found
                if batch is not None:
                    images = self._part.images(batch)
                    engine = self._running(images, len(names))
                    if engine.name not in engines:
                        if engines:
                            warnings.warn(
                                f'{str(folder)!r} goes on with another '
                                f'engine: {engine.name} after '
                                f'{", ".join(sorted(engines))}.',
                                stacklevel=4)
                        engines.add(engine.name)
                        if rank == 0:
                            writer.note_engines(engines)
                    later(_write, writer, index, engine(images), reasons)
                elif not self._skip_bad:  # hardly any other one is better
                    refuse(bad)
                advance(len(reasons))
        for others, more in all_gather_object((bad, engines)):
            bad |= others
            engines |= more
        if bad and not self._skip_bad:
            refuse(bad)
        if rank == 0:
            writer.finish(
                fingerprint.of([row for row in range(len(names))
                                if row not in bad],
                               engine=', '.join(sorted(engines))),
                sorted(bad), in_tuple=self._part.in_tuple,
                skipped=sorted({names[row] for row in bad}),
                metainfo=metainfo)
            if bad:
                warnings.warn(f'{told(bad, names, name)}; left out.',
                              stacklevel=4)
        barrier()
        return FeatureStore(folder)

    def _running(self, images: Tensor, count: int) -> Engine:
        """The engine, made for the first batch of all."""
        if self._engine is None:
            self._engine = fastest(
                self._part, images, engine=self._asked, amp=self._amp,
                count=self._count or count)
        return self._engine


def _write(writer: StoreWriter, index: int, features: Tensor,
           reasons: list[str | None]) -> None:
    """Write a block; here, and not ahead of it, a GPU is waited for."""
    good = [not reason for reason in reasons]
    found = np.zeros((len(good), features.shape[1]), np.float32)
    found[good] = features.cpu().numpy()
    writer.write(index, found, whole=all(good))


@contextmanager
def _in_a_thread() -> Iterator[Callable[..., None]]:
    """What calls something later, in order; errors come with later calls."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1) as pool:
        def later(*call: Any) -> None:
            waiting.append(pool.submit(*call))
            while waiting and (len(waiting) > _WAITING or waiting[0].done()):
                waiting.popleft().result()
        yield later
        for future in waiting:
            future.result()


def _unlabelled(collate: Callable, samples: list) -> dict:
    """A batch; labels stay here, for the store has them."""
    return dict(collate(samples), data_samples=None)
