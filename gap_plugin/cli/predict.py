r"""Predict the classes of images, and write a table of them.

    gap-plugin predict digits/test_nfnet work_dirs/test_nfnet/epoch_12.pth \
        photos --out predictions.csv

IMAGES are folders, which are searched to any depth, patterns such as
'photos/**/*.jpg', lists of images, a line each, or images. The table has a row
an image: image, label, score, then label_2, score_2, ... up to --topk. Images
that cannot be read are left out and named, and the exit status is 1. A run
that was cut off goes on with the same command and --resume.
"""

import argparse
import os

from ..features.engines import ENGINES
from ..prediction import (
    Classifier,
    Columns,
    check_out,
    find_images,
    predict,
)
from ..prediction.columns import LABELS, OUTPUTS
from . import console
from .building import build_model, load_config
from .command import command
from .flags import config_flag, options_flag, parser


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('images', nargs='+', metavar='IMAGES',
                       help='folders, patterns, lists of images, or images')
    found.add_argument('--out', required=True, metavar='FILE',
                       help='table to write: .csv, .json or .parquet')
    found.add_argument('--topk', type=int, metavar='N', help='labels of an '
                       'image; 1 by default, or what a head of several '
                       'labels says')
    found.add_argument('--threshold', type=float, metavar='P',
                       help='no label of a lower probability')
    found.add_argument('--all', action='store_true', dest='all_classes',
                       help='a column with the score of each class, too')
    found.add_argument('--label-type', choices=LABELS, default='name',
                       help='names of classes, or their numbers from 0 on')
    found.add_argument('--output-type', choices=OUTPUTS, default='prob',
                       help='scores are probabilities or logits')
    found.add_argument('--batch-size', type=int, metavar='N',
                       help='that of the test by default')
    found.add_argument('--workers', type=int, metavar='N', help='processes '
                       'that read images; those of the test by default')
    found.add_argument('--engine', choices=ENGINES, default='auto',
                       help='what runs the network; the fastest that gives '
                       'the same by default')
    found.add_argument('--amp', action='store_true',
                       help='automatic mixed precision')
    found.add_argument('--resume', action='store_true',
                       help='go on with a run that was cut off')
    found.add_argument('--force', action='store_true', help='replace a table '
                       'that is there, or what a run that was cut off left')
    options_flag(found)
    # of what runs a config; nothing is trained, logged or distributed
    found.set_defaults(work_dir=None, launcher='none', local_rank=0,
                       no_pin_memory=False)
    return found


def run(args: argparse.Namespace) -> int | None:
    """Predict."""
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        raise ValueError(
            'predictions are made by one process: start it without a '
            'launcher, once for each GPU with a part of the images.')
    check_out(args.out, resume=args.resume, force=args.force)
    images = find_images(args.images)
    cfg = load_config(args)
    scorer = Classifier(build_model(cfg, args, whole=True), cfg)
    classes = scorer.classes
    console.header(dict(
        console.describe_model(scorer.model, cfg),
        images=f'{len(images)} in {images.root or "."}',
        **(dict(classes=f'{len(classes)} classes') if classes else {})))
    found = predict(
        scorer, images, args.out, Columns(
            args.topk, args.threshold, args.all_classes, args.label_type,
            args.output_type),
        batch_size=args.batch_size, workers=args.workers, engine=args.engine,
        amp=args.amp, resume=args.resume, force=args.force)
    speed = f', {found.speed:.1f} images/s' if found.speed else ''
    console.header(dict(engine=f'{found.engine}{speed}',
                        rows=str(found.rows)))
    for name, reason in found.skipped.items():
        console.note(f'skipped {name!r}: {reason}')
    if found.skipped:
        console.note(f'{len(found.skipped)} of {len(images)} images cannot '
                     'be read, and are not in the table.')
    console.result({}, None, args.out)
    return 1 if found.skipped else None


main = command(flags, run)
