r"""Write a page that finds what to mend in a model and its data.

    gap-plugin report work_dirs/test_nfnet
    gap-plugin report CONFIG CHECKPOINT --out report.html \
        --suspects suspects.csv

One file of HTML, which loads nothing and runs nothing: accuracy with its
interval, the worst mistakes with their maps, suspected label errors, images
that stand in train and val, the confusion matrix with the images of its
cells, calibration, curves, config. Of a work dir, the best checkpoint is
taken, or else the last one, or that of a probe. Features come from the store
of the work dir, which is made by one pass where there is none.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine.building import check_classes
from ..features import FeatureStore
from ..host import versions
from ..prediction.tables import FORMATS, check_format
from ..version import __version__
from . import console
from .building import (
    build_model,
    check_checkpoint,
    extract_splits,
    load_config,
    one_run,
)
from .command import command
from .flags import engine_flag, parser, run_flags


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    found.add_argument('config', metavar='WORK_DIR|CONFIG',
                       help='what a training has written to, or a config')
    found.add_argument('checkpoint', nargs='?', help='checkpoint file; needed '
                       'with a config')
    found.add_argument('--out', help='the page; <work-dir>/report.html by '
                       'default')
    found.add_argument('--suspects', metavar='FILE.csv',
                       help='all images, the likeliest label error first; '
                       'also .json, .parquet')
    found.add_argument('--split', choices=['val', 'test'], default='val',
                       help='what is evaluated')
    found.add_argument('--features', metavar='FOLDER', help='of the stores; '
                       '<work-dir>/features by default')
    found.add_argument('--skip-bad', action='store_true',
                       help='leave unreadable images out')
    found.add_argument('--force', action='store_true',
                       help='write over files that exist, and replace a '
                       'store that something else has made')
    engine_flag(found)
    run_flags(found)
    return found


def check_files(args: argparse.Namespace, out: Path) -> None:
    """Refuse files that cannot be written, ahead of the pass.

    Raises:
        ValueError: If one exists, or has no folder.
    """
    files = [out]
    if args.suspects:
        if Path(args.suspects).suffix.lower() not in FORMATS:
            raise ValueError(f'--suspects {args.suspects!r} must end in one '
                             f'of {", ".join(FORMATS)}.')
        check_format(Path(args.suspects))
        files.append(Path(args.suspects))
    for path in files:
        if path.is_dir():
            raise ValueError(f'{str(path)!r} is a folder: name a file.')
        if path is out and path.suffix.lower() not in ('.html', '.htm'):
            # with --force, a checkpoint or a config would be lost
            raise ValueError(f'--out {str(path)!r} must end in .html.')
        if path.exists() and not args.force:
            raise ValueError(f'{str(path)!r} is there already: name another '
                             'file, or write over it with --force.')
        # that of a work dir is made
        if path != _default_out(args) and not path.resolve().parent.is_dir():
            raise ValueError(f'{str(path)!r}: there is no folder '
                             f'{str(path.parent)!r}; make it first.')


def _default_out(args: argparse.Namespace) -> Path:
    return Path(args.work_dir) / 'report.html'


def find_run(args: argparse.Namespace) -> tuple[Config, str]:
    """The config of a report, and why its checkpoint is the one.

    ``args`` get what they leave open: config, checkpoint, work dir.

    Raises:
        ValueError: If a work dir holds no run, or there is no checkpoint.
    """
    from ..report import find_checkpoint, find_config
    from ..report.run_folder import PROBE
    folder, why = Path(args.config), ''
    if folder.is_dir():
        args.work_dir = args.work_dir or str(folder)
        if (folder / PROBE).is_file() and not any(folder.glob('*.py')):
            raise ValueError(
                f'work dir {args.config!r} holds a probe and no config, and '
                'a config is code, which is not taken from a checkpoint: '
                'name it, by gap-plugin report CONFIG '
                f'{shlex.quote(str(folder / PROBE))} --work-dir '
                f'{shlex.quote(args.config)}')
        args.config = str(find_config(folder))
    elif args.checkpoint is None:
        raise ValueError(f'{args.config!r} is no work dir: name one, or a '
                         'config and a checkpoint.')
    cfg = load_config(args)
    args.work_dir = cfg.work_dir
    if args.checkpoint is None:
        path, why = find_checkpoint(folder, cfg)
        args.checkpoint = str(path)
    check_checkpoint(args.checkpoint)
    return cfg, why


def known_stores(args: argparse.Namespace, folder: Path) -> None:
    """Let stores that are there say how they were made."""
    for split in ('train', args.split):
        if (folder / split / 'store.json').is_file():
            made = FeatureStore(folder / split).fingerprint
            args.dtype = made.get('dtype', args.dtype)
            args.amp = made.get('amp', args.amp)


def run(args: argparse.Namespace) -> None:
    """Report."""
    try:
        from ..report import (
            find_splits,
            make_report,
            read_curves,
            write_report,
        )
        from ..report.predictions import check_single_label
    except ImportError as error:
        raise ImportError(
            f'a report needs {error.name}, which is missing: pip install '
            '"gap_plugin[report]".') from None
    if args.launcher != 'none':
        raise ValueError('--launcher: a report is one process; run the '
                         'command extract with torchrun first.')
    cfg, why = find_run(args)
    out = Path(args.out) if args.out else _default_out(args)
    check_files(args, out)
    folder = Path(args.features or Path(args.work_dir) / 'features')
    args.dtype = 'float32'
    known_stores(args, folder)
    with one_run(cfg, 'report'):
        model = build_model(cfg, args, whole=True)
        check_single_label(model)
        splits = find_splits(cfg, model, args.split)
        for split, side in splits.items():
            check_classes(dict(meta=dict(dataset_meta=model._dataset_meta)),
                          side.classes, args.checkpoint, split)
        if 'train' not in splits:
            console.warn('the config has no train_dataloader: copies are not '
                         f'looked for, and labels of {args.split} alone are '
                         'ranked.')
        console.header(dict(checkpoint=console.short(args.checkpoint)
                            + (f', {why}' if why else '')))
        stores = extract_splits(model, cfg, argparse.Namespace(
            **{**vars(args), 'out': str(folder), 'views': 0}), splits)
        for split, side in splits.items():
            side.open(stores[split])
        logs = _log_folder(args)
        facts = dict(
            checkpoint=console.short(args.checkpoint)
            + (f' ({why})' if why else ''),
            config=console.short(args.config),
            **dict(versions(), gap_plugin=__version__))
        found = make_report(
            model, cfg, splits,
            checkpoint=console.short(args.checkpoint), why=why,
            log=read_curves(logs),
            no_log=f'No log of a training is in {console.short(logs)!r}.',
            facts=facts, suspects_file=args.suspects or '')
        write_report(found, out, args.suspects)
    _tell(found, args, out)


def _log_folder(args: argparse.Namespace) -> Path:
    """Where the curves of a checkpoint are."""
    folder = Path(args.checkpoint).parent
    from ..report.run_folder import PROBE
    if Path(args.checkpoint).name == PROBE:
        return folder / 'probe'
    return folder


def _tell(found: Any, args: argparse.Namespace, out: Path) -> None:
    """Say what was found."""
    top = found.accuracy
    console.header(dict(
        mistakes=f'{top["wrong"]} images of {args.split}',
        calibration=f'{100 * found.calibration_error:.1f} points apart',
        **({} if found.copies is None else dict(
            copies=f'{found.copies} images of {args.split} are in train'))))
    if args.suspects:
        console.header(dict(suspects=console.short(args.suspects)))
    console.result({'accuracy/top1': top['share']}, None, out)


main = command(flags, run)
