r"""Which backbone is best on your data? One pass and one probe for each.

    gap-plugin rank --models 'resnet*' vit_tiny_patch16_224 \
        --data-root data/images
    gap-plugin rank --models 'test_*' --no-pretrained \
        --config digits/test_nfnet

Each network is frozen, with its own timm preprocessing, and probed as by the
command probe. Under --out, ranking.csv, ranking.md and ranking.png (accuracy
on the validation split against images/s) are written after every network. One
that fails is reported there, and the rest goes on. A run that was cut off
goes on where it stopped.
"""

import argparse
import shlex
from dataclasses import fields, replace
from pathlib import Path

from . import console
from .building import apply_options, read_config
from .command import command
from .flags import engine_flag, options_flag, parser, setting_flags


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    found.add_argument('--models', nargs='+', required=True,
                       help='names of timm, or patterns')
    data = found.add_mutually_exclusive_group(required=True)
    data.add_argument('--data-root', type=Path, help='folder of images, as '
                      'the command new-config takes it')
    data.add_argument('--config', help='whose data, neck, head and schedule '
                      'are used')
    found.add_argument('--no-pretrained', action='store_true',
                       help='random weights')
    found.add_argument('--weights', type=Path, metavar='FOLDER',
                       help='<model>.safetensors, .pth or .bin in place of '
                       'the weights of the hub')
    found.add_argument('--out', type=Path, default=Path('work_dirs/ranking'),
                       help='folder for tables, plot and features')
    found.add_argument('--epochs', type=int, default=50,
                       help='of each probe (default 50)')
    setting_flags(found)
    engine_flag(found)
    found.add_argument('--amp', action='store_true',
                       help='automatic mixed precision of the pass')
    found.add_argument('--skip-bad', action='store_true',
                       help='leave unreadable images out')
    found.add_argument('--timing-batch', type=int, default=32, metavar='N',
                       help='images a batch when images/s are measured')
    found.add_argument('--keep-features', action='store_true',
                       help='leave the stores on the disk')
    found.add_argument('--force', action='store_true',
                       help='measure again what is there')
    options_flag(found)
    return found


def run(args: argparse.Namespace) -> int:
    """Rank."""
    try:
        from ..ranking import RankingOptions, chosen_models, rank
    except ImportError as error:
        raise ImportError(
            f'a plot needs {error.name}, which is missing: pip install '
            '"gap_plugin[probe]".') from None
    if args.config:
        cfg = read_config(args.config)
        apply_options(cfg, args.cfg_options)  # may refuse
    args.out = args.out.resolve()
    options = RankingOptions(**{field.name: getattr(args, field.name)
                                for field in fields(RankingOptions)})
    if args.config:
        options = replace(options, config=cfg.filename)
    names = chosen_models(args.models,
                          not args.no_pretrained and not args.weights)
    console.header(dict(networks=str(len(names)),
                        data=str(args.config or args.data_root),
                        out=console.short(args.out)))
    rows = []
    for row in rank(names, options):
        rows.append(row)
        told = row.get('error') or (
            f'{row["accuracy"]:.2f} at {row["images_per_s"]:.1f} images/s'
            f'{", as measured before" if row["known"] else ""}')
        console.say(f'[{len(rows)}/{len(names)}] {row["model"]}: {told}')
    ranked = [row for row in rows if 'error' not in row]
    console.say(f'{len(ranked)} of {len(rows)} networks ranked, '
                f'{len(rows) - len(ranked)} failed')
    table = args.out / 'ranking.md'
    if not ranked:
        console.result({}, None, table)
        return 1
    best = max(ranked, key=lambda row: row['accuracy'])
    console.say(f'best: {best["model"]}')
    console.result({best['metric']: best['accuracy']}, None, table,
                   _following(best['model'], args))
    return 0


def _following(name: str, args: argparse.Namespace) -> str:
    """What to type next, with the best network."""
    weights = None
    if args.weights:
        from ..ranking.options import weights_file
        weights = str(weights_file(name, args.weights))
    if args.config:
        options = dict(args.cfg_options or {})
        options['model.backbone.model_name'] = name
        if args.weights or args.no_pretrained:
            options['model.backbone.pretrained'] = False
        if weights:
            options['model.backbone.checkpoint_path'] = weights
        args.cfg_options = options
        return (f'gap-plugin probe {shlex.quote(args.config)} --freeze'
                f'{console.typed(args, training=True)}')
    words = ['gap-plugin', 'new-config', name, '--data-root',
             str(args.data_root)]
    if weights:
        words += ['--checkpoint', weights]
    return shlex.join(words)


main = command(flags, run)
