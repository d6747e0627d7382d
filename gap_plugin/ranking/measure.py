"""One pass and one probe for each of several backbones."""

import hashlib
import json
import math
import multiprocessing
import re
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import nn

from ..engine.building import build_classifier
from ..engine.device import autocast, device_name, synchronize
from ..features import extract, remove
from ..features.images import (
    build_dataset,
    check_probed,
    described,
    loader_config,
    readable,
)
from ..files import written_whole
from ..host import versions
from ..probing import grid, probe
from ..version import __version__
from .options import (
    SPLITS,
    RankingOptions,
    base_config,
    config_of,
    weights_file,
)
from .table import write_tables


def check_data(cfg: Config, skip_bad: bool) -> tuple[str, set[str]]:
    """Refuse data that no network could be probed on.

    Returns:
        What stands for the data, and images that are to be left out.

    Raises:
        ValueError: If images cannot be read, or a split is empty.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    digest = hashlib.blake2b(digest_size=16)
    bad: set[str] = set()
    for split, (names, labels, files) in check_probed(cfg, SPLITS).items():
        _, images = described(names, files)
        left = set(readable(names, files, split, skip_bad).tolist())
        bad.update(name for i, name in enumerate(names) if i not in left)
        digest.update(json.dumps(
            [[names[i], images[i], labels[i].tolist()]
             for i in sorted(left)]).encode())
    return digest.hexdigest(), bad


def measured_by(name: str, base: Config, data: str,
                options: RankingOptions) -> dict:
    """What the figures of a network depend on."""
    weights: object = 'none' if options.no_pretrained else 'hub'
    if options.weights:
        try:
            found = weights_file(name, options.weights).stat()
            weights = [found.st_size, found.st_mtime_ns]
        except ValueError:
            weights = None
    return dict(
        config=base.pretty_text, data=data, weights=weights,
        device=device_name(),
        versions=dict(versions(), gap_plugin=__version__),
        **{key: str(getattr(options, key)) for key in
           ('epochs', 'lr', 'weight_decay', 'amp', 'timing_batch')})


def speed(model: nn.Module, cfg: Config, batch: int,
          amp: bool) -> tuple[float, int]:
    """Images/s of the backbone on random pixels, and their side.

    Images are as large as those of the validation split. The median over the
    batches of three seconds, after a warm-up.
    """
    shape = build_dataset(loader_config(cfg, 'val'), 'val')[0]['inputs'].shape
    device = next(model.parameters()).device
    x = torch.randn(batch, *shape, device=device)
    model.eval()
    times: list[float] = []
    end = time.perf_counter() + 3.
    with torch.no_grad(), autocast(device, amp):
        model.backbone(x)
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            model.backbone(x)
            synchronize(device)
            times.append(time.perf_counter() - start)
    return batch / statistics.median(times), shape[-1]


def rank_one(name: str, folder: Path, base: Config, bad: set[str],
             options: RankingOptions) -> dict:
    """All figures of one network.

    Raises:
        ValueError: If it cannot be probed.
    """
    start = time.perf_counter()
    if base.get('custom_imports'):  # in this process, too
        import_modules_from_strings(**base.custom_imports)
    cfg = config_of(name, base, options)
    model = build_classifier(cfg)
    stores = {
        split: extract(model, cfg, split, folder / 'features' / split,
                       amp=options.amp, force=True, bad=bad)
        for split in SPLITS}
    result = probe(
        model, cfg, stores['train'], stores['val'], epochs=options.epochs,
        work_dir=folder / 'probe',
        metainfo=stores['train'].description['metainfo'],
        settings=grid(options.lr, options.weight_decay))
    (kept, ) = [row for row in result.table if row['kept']]
    if not math.isfinite(kept['value']):
        raise ValueError('the probe has diverged: try a smaller lr.')
    rate, side = speed(model, cfg, options.timing_batch, options.amp)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    return dict(
        model=name, accuracy=kept['value'], metric=kept['metric'],
        images_per_s=rate, img_size=side, params_m=parameters / 1e6,
        features=stores['train'].features.shape[1],
        lr=kept.get('lr'), weight_decay=kept.get('weight_decay'),
        epoch=kept['epoch'], seconds=time.perf_counter() - start)


def logged(log: Path, work: Callable, *args: object) -> dict:
    """A call whose output and errors go to a file."""
    warnings.simplefilter('ignore')
    with (open(log, 'w', encoding='utf-8') as file, redirect_stdout(file),
          redirect_stderr(file)):
        try:
            return work(*args)
        except Exception:
            traceback.print_exc()
            raise


def isolated(name: str, folder: Path, base: Config, bad: set[str],
             options: RankingOptions) -> dict:
    """The figures of a network from a process of its own.

    A crash, or a network that takes more memory than there is, ends that
    process alone.

    Returns:
        Of one that fails, ``model`` and ``error``.
    """
    log = folder / 'log.txt'
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(
            1, multiprocessing.get_context('spawn')) as pool:
        future = pool.submit(logged, log, rank_one, name, folder, base, bad,
                             options)
        problem = future.exception()
    if problem is None:
        return future.result()
    if isinstance(problem, BrokenProcessPool):
        told = ('its process was killed: the memory may be too small, try a '
                'smaller batch_size')
    else:
        first = (str(problem).splitlines() or [''])[0]
        told = f'{type(problem).__name__}: {first[:200]}'
    return dict(model=name, error=f'{told} ({log})')


def rank(names: list[str], options: RankingOptions) -> Iterator[dict]:
    """Measure networks one after another; tables and plot grow with each.

    Args:
        names: Of :func:`chosen_models`.
        options: How.

    Yields:
        A row for each: its figures, or ``error``; ``known`` if they were
        measured before.

    Raises:
        ValueError: If the data cannot be probed on.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    base = base_config(options)
    data, bad = check_data(base, options.skip_bad)
    rows = []
    for name in names:
        folder = options.out / 'networks' / re.sub(r'[^\w.-]', '_', name)
        result = folder / 'result.json'
        found = (json.loads(result.read_text(encoding='utf-8'))
                 if result.is_file() else {})
        made_by = measured_by(name, base, data, options)
        known = not options.force and found.get('made_by') == made_by
        if known:
            row = found['row']
        else:
            row = isolated(name, folder, base, bad, options)
            if 'error' not in row:  # what fails is tried again next time
                with written_whole(result) as path:
                    path.write_text(json.dumps(dict(
                        row=row, made_by=made_by)), encoding='utf-8')
                if not options.keep_features:
                    for split in SPLITS:
                        remove(folder / 'features' / split)
        rows.append(row)
        write_tables(rows, options.out)
        yield dict(row, known=known)
