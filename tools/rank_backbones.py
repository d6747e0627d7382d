r"""Which backbone is best on your data? One pass and one probe for each.

    python tools/rank_backbones.py --models 'resnet*' vit_tiny_patch16_224 \\
        --data-root data/images
    python tools/rank_backbones.py --models 'test_*' --no-pretrained \\
        --config configs/digits/test_nfnet.py

Each network is frozen, with its own timm preprocessing, and probed as by
linear_probe.py. Under --out, ranking.csv, ranking.md and ranking.png
(accuracy on the validation split against images/s) are written after every
network. One that fails is reported there, and the rest goes on. A run that
was cut off goes on where it stopped.
"""

import argparse
import copy
import csv
import fnmatch
import hashlib
import json
import math
import multiprocessing
import re
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import timm
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
from torch import nn

import gap_plugin
import make_config
from common import add_setting_flags, build_classifier
from gap_plugin.compat import versions
from gap_plugin.engine.device import autocast, device_name, synchronize
from gap_plugin.files import written_whole
from gap_plugin.probing import extract, grid, probe, remove
from gap_plugin.probing.images import (
    build_dataset,
    data_list,
    loader_config,
    readable,
)
from gap_plugin.timm_features import check_name

try:
    from ranking_plot import pareto, plot
except ImportError as error:
    sys.exit(f'rank_backbones.py draws with {error.name}, which is missing: '
             'pip install -e ".[probe]"')

COLUMNS = ('model', 'accuracy', 'metric', 'images_per_s', 'pareto',
           'params_m', 'features', 'img_size', 'lr', 'weight_decay', 'epoch',
           'seconds', 'error')
SPLITS = ('train', 'val')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', required=True,
                        help='names of timm, or patterns')
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument('--data-root', type=Path,
                      help='folder of images, as make_config.py takes it')
    data.add_argument('--config', help='whose data, neck, head and schedule '
                      'are used')
    parser.add_argument('--no-pretrained', action='store_true',
                        help='random weights')
    parser.add_argument('--weights', type=Path, metavar='FOLDER',
                        help='<model>.safetensors, .pth or .bin in place of '
                        'the weights of the hub')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/ranking'))
    parser.add_argument('--epochs', type=int, default=50)
    add_setting_flags(parser)
    parser.add_argument('--amp', action='store_true',
                        help='automatic mixed precision of the pass')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave unreadable images out')
    parser.add_argument('--timing-batch', type=int, default=32, metavar='N',
                        help='images a batch when images/s are measured')
    parser.add_argument('--keep-features', action='store_true',
                        help='leave the stores on the disk')
    parser.add_argument('--force', action='store_true',
                        help='measure again what is there')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='change the config')
    args = parser.parse_args()
    for flag in ('epochs', 'timing_batch'):
        if getattr(args, flag) < 1:
            parser.error(f'--{flag.replace("_", "-")} must be 1 at least, '
                         f'got {getattr(args, flag)}')
    return args


def chosen_models(patterns: list[str], pretrained: bool) -> list[str]:
    """Names of timm that patterns fit, in order, each once.

    Args:
        patterns: Names, ``hf-hub:`` and ``local-dir:`` too, or patterns.
        pretrained: Whether patterns are of networks with weights only.

    Raises:
        ValueError: If one fits nothing.
    """
    weighted = {name.split('.')[0]
                for name in timm.list_models(pretrained=True)}
    found: dict[str, None] = {}
    for pattern in patterns:
        if any(c in pattern for c in '*?['):
            names = [name for name in fnmatch.filter(
                timm.list_models(), pattern)
                if name in weighted or not pretrained]
            if not names:
                raise ValueError(
                    f'--models {pattern!r} fits no network of timm'
                    f'{" with weights" if pretrained else ""}: see python '
                    'tools/backbones.py.')
        else:
            check_name(pattern)
            names = [pattern]
        found.update(dict.fromkeys(names))
    return list(found)


def base_config(args: argparse.Namespace) -> Config:
    """The config that all networks share.

    Raises:
        ValueError: If it cannot be made.
    """
    if args.config is None:
        path = args.out / 'config.py'
        _, files = make_config.config_files(make_config.parse_args([
            'resnet18', '--data-root', str(args.data_root), '--out',
            str(path), '--recipe', 'linear']), read=False)
        for name, text in files.items():
            with written_whole(name) as temporary:
                temporary.write_text(text, encoding='utf-8')
    cfg = Config.fromfile(args.config or path)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if cfg.model.backbone.type != 'TimmFeatureBackbone':
        raise ValueError(f'the backbone of {args.config} is '
                         f'{cfg.model.backbone.type}: use a config of '
                         'TimmFeatureBackbone, whose model_name changes.')
    cfg.pop('load_from', None)
    for key in ('model_name', 'checkpoint_path', 'pretrained', 'init_cfg'):
        cfg.model.backbone.pop(key, None)
    for given in (cfg.get('data_preprocessor'),
                  cfg.model.get('data_preprocessor')):
        for key in ('mean', 'std'):  # each network has its own
            (given or {}).pop(key, None)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].setdefault(
            'collate_fn', dict(type='default_collate'))
    if 'TimmTestTransform' not in str(loader_config(cfg, 'val')):
        print('the test pipeline has no TimmTestTransform: it is the same '
              'for all networks.')
    return cfg


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
    for split in SPLITS:
        names, labels, files = data_list(
            build_dataset(loader_config(cfg, split), split))
        left = set(readable(names, files, split, skip_bad).tolist())
        bad.update(name for i, name in enumerate(names) if i not in left)
        digest.update(json.dumps(
            [[names[i], labels[i].tolist()] for i in sorted(left)]).encode())
    return digest.hexdigest(), bad


def weights_file(name: str, folder: Path) -> Path:
    """A network's file of weights in a folder.

    Raises:
        ValueError: If there is none.
    """
    files = [folder / f'{name}{suffix}'
             for suffix in ('.safetensors', '.pth', '.bin')]
    there = [path for path in files if path.is_file()]
    if not there:
        raise ValueError(f'{str(folder)!r} has no {files[0].name} and no '
                         f'{files[1].name}.')
    return there[0]


def measured_by(name: str, base: Config, data: str,
                args: argparse.Namespace) -> dict:
    """What the figures of a network depend on."""
    weights: object = 'none' if args.no_pretrained else 'hub'
    if args.weights:
        try:
            found = weights_file(name, args.weights).stat()
            weights = [found.st_size, found.st_mtime_ns]
        except ValueError:
            weights = None
    return dict(
        config=base.pretty_text, data=data, weights=weights,
        device=device_name(),
        versions=dict(versions(), gap_plugin=gap_plugin.__version__),
        **{key: str(getattr(args, key)) for key in
           ('epochs', 'lr', 'weight_decay', 'amp', 'timing_batch')})


def config_of(name: str, base: Config, args: argparse.Namespace) -> Config:
    """The config of one network: frozen, with its weights.

    Raises:
        ValueError: If there is no file of weights.
    """
    cfg = copy.deepcopy(base)
    cfg.model.backbone.update(
        model_name=name, frozen_stages='all',
        pretrained=not (args.no_pretrained or args.weights))
    if args.weights:
        cfg.model.backbone.checkpoint_path = str(
            weights_file(name, args.weights))
    return cfg


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
             args: argparse.Namespace) -> dict:
    """All figures of one network.

    Raises:
        ValueError: If it cannot be probed.
    """
    start = time.perf_counter()
    if base.get('custom_imports'):  # in this process, too
        import_modules_from_strings(**base.custom_imports)
    cfg = config_of(name, base, args)
    model = build_classifier(cfg, argparse.Namespace(
        cfg_options=None, launcher='none', checkpoint=None))
    stores = {
        split: extract(model, cfg, split, folder / 'features' / split,
                       amp=args.amp, force=True, bad=bad)
        for split in SPLITS}
    result = probe(
        model, cfg, stores['train'], stores['val'], epochs=args.epochs,
        work_dir=folder / 'probe',
        metainfo=stores['train'].description['metainfo'],
        settings=grid(args.lr, args.weight_decay))
    (kept, ) = [row for row in result.table if row['kept']]
    if not math.isfinite(kept['value']):
        raise ValueError('the probe has diverged: try smaller --lr.')
    rate, side = speed(model, cfg, args.timing_batch, args.amp)
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
             args: argparse.Namespace) -> dict:
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
                             args)
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


def write(rows: list[dict], out: Path) -> None:
    """Tables and plot, the best first."""
    failed = [row for row in rows if 'error' in row]
    ranked = sorted((row for row in rows if 'error' not in row),
                    key=lambda row: -row['accuracy'])
    front = pareto(ranked)
    ranked = [dict(row, pareto=row in front) for row in ranked]
    with written_whole(out / 'ranking.csv') as path, open(
            path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ranked + failed)
    metric = ranked[0]['metric'] if ranked else 'accuracy'
    lines = [
        f'| network | {metric} (val) | images/s | params (M) | features | '
        'image | Pareto front |', '|---|---|---|---|---|---|---|', *(
            f'| {row["model"]} | {row["accuracy"]:.2f} | '
            f'{row["images_per_s"]:.1f} | {row["params_m"]:.2f} | '
            f'{row["features"]} | {row["img_size"]} | '
            f'{"yes" if row["pareto"] else ""} |' for row in ranked), *(
            f'| {row["model"]} | failed: {row["error"]} | | | | | |'
            for row in failed)]
    with written_whole(out / 'ranking.md') as path:
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    if ranked:
        with written_whole(out / 'ranking.png') as path:
            plot(ranked, path)


def main() -> None:
    """Rank."""
    args = parse_args()
    warnings.simplefilter('ignore')
    names = chosen_models(args.models,
                          not args.no_pretrained and not args.weights)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    base = base_config(args)
    grid(args.lr, args.weight_decay)  # refuses what is out of range
    data, bad = check_data(base, args.skip_bad)
    rows = []
    for i, name in enumerate(names, 1):
        folder = args.out / 'networks' / re.sub(r'[^\w.-]', '_', name)
        known = folder / 'result.json'
        found = json.loads(known.read_text()) if known.is_file() else {}
        made_by = measured_by(name, base, data, args)
        again = args.force or found.get('made_by') != made_by
        if again:
            row = isolated(name, folder, base, bad, args)
            if 'error' not in row:  # what fails is tried again next time
                with written_whole(known) as path:
                    path.write_text(json.dumps(dict(
                        row=row, made_by=made_by)))
                if not args.keep_features:
                    for split in SPLITS:
                        remove(folder / 'features' / split)
        else:
            row = found['row']
        rows.append(row)
        write(rows, args.out)
        told = row.get('error') or (
            f'{row["accuracy"]:.2f} at {row["images_per_s"]:.1f} images/s'
            f'{"" if again else ", as measured before"}')
        print(f'[{i}/{len(names)}] {name}: {told}', flush=True)
    failed = sum('error' in row for row in rows)
    print(f'{len(rows) - failed} of {len(rows)} networks ranked, {failed} '
          f'failed: {args.out / "ranking.md"}')
    if failed == len(rows):
        sys.exit(1)


if __name__ == '__main__':
    try:
        main()
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
