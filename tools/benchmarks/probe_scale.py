"""A further probe over 60 000 x 1280 stored features, k-NN, and memory.

Times a probe with validation on another 10 000 rows after each epoch against
a plain loop of the same steps without validation, with batch normalisation and
without; 13 settings at once against one; k-NN against its product alone; and
an epoch over many rows. Features are random, of 10 classes with a centre each.
Then extraction, probe and k-NN are run in processes of their own on some rows
and on ten times as many, and the peak of their anonymous memory is compared;
that of memory-mapped files is the system's to take back.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn import functional

import paired
from gap_plugin.features import FeatureStore, StoreWriter, extract
from gap_plugin.probing import DINOV2_RATES, grid, knn, probe

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/digits/test_nfnet.py'
CLASSES = 10


def random_store(folder: Path, rows: int, width: int,
                 seed: int) -> FeatureStore:
    """Features around a centre for each class, which overlap."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(
        size=(CLASSES, width)).astype(np.float32)
    labels = rng.integers(0, CLASSES, rows)
    writer = StoreWriter(folder, rows, width, 'float32', 1000)
    writer.prepare(labels, [str(i) for i in range(rows)], {})
    for i in writer.missing():
        few = labels[i * 1000:(i + 1) * 1000]
        noise = rng.standard_normal((len(few), width), dtype=np.float32)
        writer.write(i, noise + 0.06 * centres[few])
    return writer.finish(dict(batch_size=1000), in_tuple=True)


def classifier(width: int | None, batch: int,
               norm: bool = True) -> tuple[nn.Module, Config]:
    """The classifier of the config, for features of a width."""
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.train_dataloader.batch_size = batch
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].collate_fn = dict(type='default_collate')
    if width is not None:
        cfg.model.type = 'ImageClassifier'
        cfg.model.neck = [dict(type='GAPNeck')] + (
            [dict(type='BNNeck', in_channels=width)] if norm else [])
        cfg.model.head.in_channels = width
    return MODELS.build(cfg.model), cfg


def bare(train: FeatureStore, batch: int, epochs: int, norm: bool) -> float:
    """Seconds of the same steps as a plain loop, without validation."""
    x = torch.from_numpy(np.array(train.features))
    y = torch.from_numpy(np.array(train.labels))
    layers = nn.Sequential(*[nn.BatchNorm1d(x.shape[1])] * norm,
                           nn.Linear(x.shape[1], CLASSES))
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-3, fused=True)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            loss = functional.cross_entropy(layers(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


def probed(train: FeatureStore, val: FeatureStore | None, batch: int,
           epochs: int, norm: bool, count: int) -> float:
    """Seconds of a probe of some settings at once."""
    model, cfg = classifier(train.features.shape[1], batch, norm)
    # the schedule moves as often as in 100 epochs
    cfg.train_cfg.max_epochs = max(
        round(cfg.train_cfg.max_epochs * epochs / 100), 1)
    start = time.perf_counter()
    probe(model, cfg, train, val, epochs=epochs,
          settings=grid(DINOV2_RATES[:count], None),
          select='cv' if count == 1 else 'val')
    return time.perf_counter() - start


def timing(args: argparse.Namespace) -> list[dict]:
    """Seconds of probes and of plain loops, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        train, val = (random_store(folder / str(i), n, args.width, i)
                      for i, n in enumerate((args.rows, 10_000)))
        for _ in range(args.rounds):
            for norm, batch in itertools.product((False, True), args.batch):
                row = dict(
                    rows=args.rows, width=args.width, batch=batch, norm=norm,
                    epochs=args.epochs,
                    bare_s=bare(train, batch, args.epochs, norm),
                    **{f'probe_{count}_s': probed(
                        train, val, batch, args.epochs, norm, count)
                       for count in (1, 13)})
                row['over_bare'] = row['probe_1_s'] / row['bare_s']
                row['13_over_1'] = row['probe_13_s'] / row['probe_1_s']
                rows.append(row)
                print(row, flush=True)
            start = time.perf_counter()
            knn(train, val, [10, 20, 100, 200])
            middle = time.perf_counter()
            known = torch.from_numpy(np.array(train.features))
            torch.from_numpy(np.array(val.features)) @ known.T
            rows.append(dict(
                what='k-NN', known=len(train), rows=len(val),
                knn_s=middle - start, product_s=time.perf_counter() - middle))
            print(rows[-1], flush=True)
    return rows


#: Operations that compute, and those that fetch the rows.
ARITHMETIC = ('aten::addmm', 'aten::mm', 'aten::bmm', 'aten::mul',
              'aten::_log_softmax', 'aten::_log_softmax_backward_data',
              'aten::nll_loss_forward', 'aten::nll_loss_backward',
              'aten::native_batch_norm', 'aten::_fused_adamw_',
              'aten::linalg_vector_norm', 'aten::sum', 'aten::softmax',
              'aten::_softmax', 'aten::topk', 'aten::index_select')


def profile(args: argparse.Namespace) -> list[dict]:
    """What share of a probe's training is arithmetic."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        train, val = (random_store(folder / str(i), n, args.width, i)
                      for i, n in enumerate((args.rows, 10_000)))
        for norm, count in itertools.product((False, True), (1, 13)):
            both = train, val, args.batch[0]
            fixed, seconds = (probed(*both, epochs, norm, count)
                              for epochs in (1, 3))
            times = []
            for epochs in (1, 3):
                with torch.profiler.profile() as found:
                    probed(*both, epochs, norm, count)
                times.append(sum(
                    one.self_cpu_time_total for one in found.key_averages()
                    if one.key in ARITHMETIC) / 1e6)
            rows.append(dict(
                what='profile', norm=norm, settings=count,
                epoch_s=(seconds - fixed) / 2,
                arithmetic_s=(times[1] - times[0]) / 2,
                share=(times[1] - times[0]) / (seconds - fixed)))
            print(rows[-1], flush=True)
    return rows


def many(args: argparse.Namespace) -> list[dict]:
    """Seconds of an epoch over many rows, and the memory that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        train = random_store(folder / 'many', args.many, 768, 0)
        before = anonymous('self')
        times = [probed(train, None, 1024, epochs, True, 1)
                 for epochs in (1, 3)]
        found = dict(
            what='many rows', rows=args.many, width=768, batch=1024,
            bytes=train.features.nbytes, epoch_s=(times[1] - times[0]) / 2,
            anonymous_mib=(anonymous('self') - before) / 1024)
    print(found, flush=True)
    return [found]


def anonymous(process: int | str) -> int:
    """KiB of anonymous memory of a process, 0 if it has ended."""
    try:
        text = Path(f'/proc/{process}/status').read_text(encoding='utf-8')
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines()
               if line.startswith('RssAnon:'))


def work(kind: str, rows: int, folder: Path) -> None:
    """What a process of its own does whose memory is watched."""
    if kind == 'extraction':
        model, cfg = classifier(None, 64)
        times = rows // 1442
        cfg.train_dataloader.dataset = dict(
            type='RepeatDataset', times=times,
            dataset=cfg.train_dataloader.dataset)
        extract(model, cfg, 'train', folder)
        return
    stores = FeatureStore(folder / 'train'), FeatureStore(folder / 'val')
    if kind == 'k-NN':
        knn(*stores, [10, 200])
    else:
        probed(*stores, 128, 2, True, 1)


def peak_of(kind: str, rows: int, folder: Path) -> int:
    """Bytes of anonymous memory at the peak of a process."""
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', __file__, '--work', kind,
         str(rows), str(folder)], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait():
        raise ValueError(f'{kind} of {rows} rows failed.')
    watcher.join()
    return peak * 1024


def memory(args: argparse.Namespace) -> list[dict]:
    """Peaks of some rows, and of ten times as many."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, rows in (('extraction', 1442), ('probe', 6000),
                           ('k-NN', 6000)):
            peaks = []
            for n in (rows, 10 * rows):
                place = Path(folder) / f'{kind}_{n}'
                if kind != 'extraction':
                    random_store(place / 'train', n, 1280, 0)
                    random_store(place / 'val', 1000, 1280, 1)
                peaks.append(peak_of(kind, n, place))
            found.append(dict(
                what=kind, rows=[rows, 10 * rows],
                peak_mib=[round(p / 2 ** 20, 1) for p in peaks],
                ratio=peaks[1] / peaks[0]))
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=int, default=60_000)
    parser.add_argument('--width', type=int, default=1280)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--batch', type=int, nargs='+', default=[128, 1024])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--many', type=int, default=1_280_000,
                        help='rows of the largest store, 3 KB each on a disk')
    parser.add_argument('--only',
                        choices=['timing', 'profile', 'memory', 'many'],
                        help='one part alone')
    parser.add_argument('--out', help='JSON file for the raw figures')
    parser.add_argument('--work', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        kind, rows, folder = args.work
        work(kind, int(rows), Path(folder))
        return
    found = []
    for name, part in (('timing', timing), ('profile', profile),
                       ('memory', memory), ('many', many)):
        if args.only in (None, name):
            found += part(args)
    if args.out:
        paired.write(args.out, found)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()
