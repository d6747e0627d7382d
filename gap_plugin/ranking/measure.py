"""One pass and one probe for each of several backbones."""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import statistics
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..engine.building import build_classifier
from ..engine.device import autocast, device_name, synchronize
from ..features import Extraction, remove
from ..features.images import (
    BadImages,
    Rows,
    build_dataset,
    check_probed,
    data_list,
    described,
    loader_config,
)
from ..files import written_whole
from ..host import versions
from ..locks import alone
from ..messages import first_line
from ..probing import grid, interval, probe
from ..version import __version__
from .options import (
    SPLITS,
    RankingOptions,
    base_config,
    config_of,
    weights_file,
)
from .table import write_tables


def check_data(cfg: Config) -> str:
    """Refuse data that no network could be probed on.

    Returns:
        What stands for the data.

    Raises:
        ValueError: As of :func:`~gap_plugin.features.images.check_probed`.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    digest = hashlib.blake2b(digest_size=16)
    for names, labels, files in check_probed(cfg, SPLITS).values():
        _, images = described(names, files)
        digest.update(json.dumps(
            [*zip(names, images, labels.tolist(), strict=True)]).encode())
    return digest.hexdigest()


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
        **({} if options.engine == 'auto' else dict(engine=options.engine)),
        **{key: str(getattr(options, key)) for key in
           ('epochs', 'lr', 'weight_decay', 'amp', 'timing_batch')})


def speed(model: nn.Module, cfg: Config, batch: int,
          amp: bool) -> tuple[float, int]:
    """Images/s of the backbone on random pixels, and their side.

    Images are as large as those of the validation split. The median over the
    batches of three seconds, after a warm-up.
    """
    dataset = build_dataset(loader_config(cfg, 'val'), 'val', model)
    rows = Rows(dataset, data_list(dataset)[0])
    shape = rows.first(len(dataset))['inputs'].shape
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


def rank_one(name: str, folder: Path, base: Config,
             options: RankingOptions) -> dict:
    """All figures of one network.

    Raises:
        ValueError: If it cannot be probed.
    """
    start = time.perf_counter()
    cfg = config_of(name, base, options)
    model = build_classifier(cfg)
    extraction = Extraction(
        model, cfg, engine=options.engine, amp=options.amp, force=True,
        skip_bad=options.skip_bad)
    stores = {split: extraction(split, folder / 'features' / split)
              for split in SPLITS}
    result = probe(
        model, cfg, stores['train'], stores['val'], epochs=options.epochs,
        metainfo=stores['train'].description['metainfo'],
        settings=grid(options.lr, options.weight_decay))
    (kept, ) = [row for row in result.table if row['kept']]
    accuracy = float(result.metrics[kept['metric']])  # goes into JSON
    rate, side = speed(model, cfg, options.timing_batch, options.amp)
    parameters = sum(p.numel() for p in model.backbone.parameters())
    return dict(
        model=name, accuracy=accuracy, metric=kept['metric'],
        images_per_s=rate, img_size=side, params_m=parameters / 1e6,
        features=stores['train'].features.shape[1],
        lr=kept.get('lr'), weight_decay=kept.get('weight_decay'),
        epoch=kept['epoch'], seconds=time.perf_counter() - start,
        **interval(kept['metric'], accuracy, len(stores['val'])))


def logged(to: Connection, log: Path, work: Callable, *args: object) -> None:
    """Send what a call gives, or the text of its error; log all it prints.

    The error itself may not survive the way to another process.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter('ignore')
    with (open(log, 'w', encoding='utf-8', errors='backslashreplace') as file,
          redirect_stdout(file), redirect_stderr(file)):
        try:
            to.send(work(*args))
        except BadImages as error:
            to.send(dict(bad_images=str(error)))
            raise SystemExit(1) from error
        except Exception as error:
            traceback.print_exc()
            to.send(dict(error=f'{type(error).__name__}: '
                         f'{first_line(error)[:200]}'))
            raise SystemExit(1) from error


def _end_with_parent() -> None:
    """Leave no process behind when the ranking is ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def isolated(log: Path, work: Callable, *args: object) -> dict:
    """What a call gives in a process of its own.

    A crash, or a network that takes more memory than there is, ends that
    process alone.

    Args:
        log: File for all that is printed.
        work: Gives a dict.
        *args: Of ``work``.

    Returns:
        Of one that fails, ``error``.

    Raises:
        BadImages: If images cannot be read, by no network then.
    """
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=logged, args=(sender, log, work, *args))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        process.join()
        found = dict(error=_how_it_ended(process.exitcode))
    except BaseException:  # stopped
        process.terminate()
        raise
    process.join()
    if 'bad_images' in found:
        raise BadImages(found['bad_images'])
    if 'error' in found:
        found['error'] += f' ({log})'
    return found


def _how_it_ended(status: int) -> str:
    """Why a process has sent nothing."""
    if status == -9:  # SIGKILL, as systems without memory give it
        return ('its process was killed: the memory may be too small, try a '
                'smaller batch_size')
    name = f'status {status}'
    if -status in set(signal.Signals):
        name = signal.Signals(-status).name
    return f'its process ended with {name}'


def rank(names: list[str], options: RankingOptions) -> Iterator[dict]:
    """Measure networks one after another; tables and plot grow with each.

    Args:
        names: Of :func:`chosen_models`.
        options: How.

    Yields:
        A row for each: its figures, or ``error``; ``known`` if they were
        measured before.

    Raises:
        ValueError: If the data cannot be probed on, or another ranking is at
            the same folder.
    """
    with alone(options.out / '.rank.lock', options.out):
        yield from _rank(names, options)


def _rank(names: list[str], options: RankingOptions) -> Iterator[dict]:
    """Measure networks, in a folder of one's own."""
    options.out.mkdir(parents=True, exist_ok=True)
    base = base_config(options)
    data = check_data(base)
    rows = []
    for name in names:
        folder = options.out / 'networks' / re.sub(r'[^\w.-]', '_', name)
        result = folder / 'result.json'
        found = (json.loads(result.read_text(encoding='utf-8'))
                 if result.is_file() else {})
        made_by = measured_by(name, base, data, options)
        known = (not options.force and found.get('made_by') == made_by
                 and found['row']['model'] == name)  # a/b and a_b share it
        if known:
            row = found['row']
        else:
            folder.mkdir(parents=True, exist_ok=True)
            row = dict(isolated(folder / 'log.txt', rank_one, name, folder,
                                base, options), model=name)
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
