r"""Train neck and head of a config on stored features of its backbone.

    gap-plugin probe digits/test_nfnet --freeze \
        --checkpoint work_dirs/test_nfnet/epoch_12.pth --epochs 100

One pass over the images, then any number of epochs. Writes
<work-dir>/linear_probe.pth, a checkpoint of the whole model for the command
test, <work-dir>/linear_probe.csv, all results, and the config, if the work dir
has none. Several learning rates and
weight decays are trained at once. One pair is chosen by cross-validation on
the training images, so that the validation split has chosen nothing:

    gap-plugin probe CONFIG --lr 1e-4 1e-3 1e-2 \
        --weight-decay 0 0.05 --knn 10 20 --shots 1 2 4 8 16 --test

--select val keeps the pair and the epoch that are best on the validation
split; its figure then is no figure of unseen images.
"""

import argparse
import csv
import shlex
from pathlib import Path

from mmengine.config import Config

from ..engine.building import has_seen_labels
from ..features import FeatureStore
from ..files import written_whole
from ..probing import (
    DINOV2_RATES,
    ProbeResult,
    check_frozen,
    few_shot,
    grid,
    interval,
    knn,
    logistic,
    probe,
    save_whole,
)
from ..probing.metrics import numbers
from ..probing.parts import norm_of
from ..version import __version__
from . import console
from .building import build_model, extract_splits, load_config, one_run
from .command import command
from .flags import parser, setting_flags, store_flags

COLUMNS = ('method', 'lr', 'weight_decay', 'k', 'shots', 'split', 'metric',
           'value', 'std', 'epoch', 'kept', 'C', 'low', 'high', 'norm')


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    store_flags(found)
    found.add_argument('--epochs', type=int, default=100,
                       help='the schedule of the config is stretched to it')
    setting_flags(found)
    found.add_argument('--grid', action='store_true',
                       help="learning rates of DINOv2's linear evaluation, "
                       'with the BNNeck of the config and without')
    found.add_argument('--select', choices=['cv', 'val'], default='cv',
                       help='what chooses one of several settings: '
                       'cross-validation on the training images, or the '
                       'validation split')
    found.add_argument('--folds', type=int, default=5, metavar='N',
                       help='of the cross-validation')
    found.add_argument('--logistic', action='store_true',
                       help="scikit-learn's logistic regression as well, its "
                       'C chosen by cross-validation')
    found.add_argument('--test', action='store_true',
                       help='evaluate what is kept on the test split, once')
    found.add_argument('--knn', type=int, nargs='+', default=[],
                       metavar='K', help='k-NN as well')
    found.add_argument('--shots', type=int, nargs='+', default=[],
                       metavar='N', help='classifiers trained on N images '
                       'of each class as well')
    found.add_argument('--freeze', action='store_true',
                       help='probe a backbone that the config trains')
    found.add_argument('--no-validate', action='store_true',
                       help='no validation; the last epoch is kept')
    found.add_argument('--resume', action='store_true',
                       help='go on where the features were cut off, as it '
                       'does anyway; the training takes seconds and starts '
                       'again')
    return found


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ValueError: Which ones.
    """
    if args.epochs < 1:
        raise ValueError(f'--epochs must be 1 at least, got {args.epochs}.')
    if args.launcher != 'none':
        raise ValueError('--launcher: the probe is one process; run the '
                         'command extract with torchrun first.')
    if args.folds < 2:
        raise ValueError(f'--folds must be 2 at least, got {args.folds}.')
    if args.grid and args.lr:
        raise ValueError('--grid gives the learning rates: leave --lr out.')
    if args.select == 'val' and args.no_validate:
        raise ValueError('--select val chooses by the validation split: '
                         'leave --no-validate out.')
    for flag in ('knn', 'shots', 'logistic'):
        if args.no_validate and getattr(args, flag):
            raise ValueError(f'--{flag} is measured on the validation split: '
                             'leave --no-validate out.')


def other_rows(args: argparse.Namespace, stores: dict[str, FeatureStore],
               seed: int) -> list[dict]:
    """Results that need no training by the config."""
    pair = stores['train'], stores.get('val')
    found = [dict(row, method=method, split='val', metric='top1',
                  value=row.pop('top1'))
             for method, rows in (
                 ('k-NN', knn(*pair, args.knn) if args.knn else []),
                 ('few-shot', few_shot(*pair, args.shots, seed)
                  if args.shots else []))
             for row in rows]
    if args.logistic:
        row = logistic(*pair, args.folds, seed)
        told = dict(method='logistic', metric='top1', C=row['C'], kept=True)
        found += [dict(told, split=f'train, {args.folds} folds',
                       value=row['cv'], std=row['std']),
                  dict(told, split='val', value=row['top1'],
                       **interval('top1', row['top1'], len(pair[1])))]
    return found


def probe_rows(result: ProbeResult, sizes: dict[str, int]) -> list[dict]:
    """Results of the probe: of every setting, and all of the kept one."""
    kept = dict(method='probe', kept=True, **result.setting)
    table = [dict(row, method='probe') for row in result.table]
    told = {(row['split'], row['metric']) for row in table if row['kept']}
    table += [
        dict(kept, split=split, metric=metric, value=value)
        for split, metrics in (('val', result.metrics),
                               ('test', result.test_metrics))
        for metric, value in numbers(metrics).items()
        if (split, metric) not in told]
    for row in table:
        if row['kept'] and row['split'] in sizes:
            row.update(interval(row['metric'], row['value'],
                                sizes[row['split']]))
    return table


def write(rows: list[dict], path: Path) -> None:
    """Print results as a table, and write them."""
    with written_whole(path) as temporary, open(
            temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    columns = [c for c in COLUMNS if any(c in row for row in rows)]
    lines = [columns] + [[_text(row.get(c, '')) for c in columns]
                         for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        console.say('  '.join(map(str.ljust, line, widths)).rstrip())


def _text(value: object) -> str:
    if isinstance(value, bool):
        return '*' if value else ''
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def _same(stores: dict[str, FeatureStore]) -> bool:
    return 'val' in stores and stores['val'].images == stores['test'].images


def run(args: argparse.Namespace) -> None:
    """Extract if needed, and probe."""
    check_flags(args)
    grid(args.lr, args.weight_decay)  # may refuse
    cfg = load_config(args)
    with one_run(cfg, 'probe'):
        _probe(cfg, args)


def _probe(cfg: Config, args: argparse.Namespace) -> None:
    """Extract if needed, and probe, in a work dir of its own."""
    model = build_model(cfg, args)
    if not args.freeze:
        check_frozen(model)
    work_dir = Path(cfg.work_dir)
    splits = dict(train=True, val=not args.no_validate, test=args.test)
    stores = extract_splits(
        model, cfg, args, [split for split, used in splits.items() if used],
        probed=True)
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    others = other_rows(args, stores, seed)
    metainfo = stores['train'].description['metainfo']
    # by a backbone that has seen the labels, or one that has not
    trained = dict(backbone_trained=True) if has_seen_labels(
        model._meta, metainfo.get('classes')) else {}
    settings = grid(DINOV2_RATES if args.grid else args.lr, args.weight_decay,
                    [True, False] if args.grid and norm_of(model) else None)
    console.header(dict(probe=f'{args.epochs} epochs on stored features, '
                        f'log in {console.short(work_dir / "probe")}'))
    result = probe(
        model, cfg,
        [stores[f'view_{i}'] for i in range(args.views)] or stores['train'],
        stores.get('val'), epochs=args.epochs, work_dir=work_dir / 'probe',
        metainfo=metainfo, settings=settings, test=stores.get('test'),
        select=args.select, fold_count=args.folds)
    path = work_dir / 'linear_probe.pth'
    save_whole(model, path, dict(
        dataset_meta=metainfo, cfg=cfg.pretty_text, epoch=result.epoch,
        gap_plugin_version=__version__, **trained))
    if not any(work_dir.glob('*.py')):  # as a training leaves it
        with written_whole(work_dir / f'{Path(args.config).stem}.py') as file:
            file.write_text(cfg.pretty_text, encoding='utf-8')
    rows = probe_rows(result, {split: len(store) for split, store in
                               stores.items()}) + others
    if rows:
        write(rows, path.with_suffix('.csv'))
    else:  # those of an earlier probe are not of these weights
        path.with_suffix('.csv').unlink(missing_ok=True)
    if args.test and _same(stores):
        console.warn('the test images are the validation images: what was '
                     'chosen by them is no figure of unseen data.')
    console.result(result.metrics,
                   result.table[0]['metric'] if result.table else None, path,
                   f'gap-plugin test {shlex.quote(args.config)} '
                   f'{shlex.quote(console.short(path))}'
                   f'{console.typed(args, "work_dir")}')


main = command(flags, run)
