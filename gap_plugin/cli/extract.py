r"""Store the pooled features of a config's images, by one pass over them.

    gap-plugin extract digits/test_nfnet \
        --checkpoint work_dirs/test_nfnet/epoch_12.pth

Each split becomes a folder of features.npy, labels.npy, sample_ids.npy and
store.json. A store that is there already, made by the same weights from the
same images, is kept; a run that was cut off goes on.
"""

import argparse
import shlex

from ..features import SPLITS
from . import console
from .building import build_model, extract_splits, load_config
from .command import command
from .flags import parser, store_flags


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    store_flags(found)
    found.add_argument('--splits', nargs='+', choices=SPLITS, metavar='SPLIT',
                       default=['train', 'val'],
                       help='of train, val, test; train val by default')
    return found


def run(args: argparse.Namespace) -> None:
    """Extract."""
    cfg = load_config(args)
    model = build_model(cfg, args)
    stores = extract_splits(model, cfg, args, args.splits)
    trained = any(p.requires_grad for p in model.backbone.parameters())
    given = console.typed(args, 'checkpoint', 'work_dir', 'out', 'amp',
                          'skip_bad', 'views', training=True)
    given += ''.join(f' --{name} {value}' for name, value, default in (
        ('dtype', args.dtype, 'float32'), ('engine', args.engine, 'auto'))
        if value != default)
    console.result(
        {}, None, next(iter(stores.values())).folder.parent,
        f'gap-plugin probe {shlex.quote(args.config)}'
        f'{" --freeze" if trained else ""}{given}')


main = command(flags, run)
