r"""Predict the classes of images, and write a table of them.

    gap-plugin predict digits/test_nfnet work_dirs/test_nfnet/epoch_12.pth \
        photos --out predictions.csv

In place of CHECKPOINT, a file MODEL.onnx that was exported does. If it takes
photos and gives probabilities, CONFIG may be left out.

IMAGES are folders, which are searched to any depth, patterns such as
'photos/**/*.jpg', lists of images, a line each, or images. The table has a row
an image: image, label, score, then label_2, score_2, ... up to --topk. Images
that cannot be read are left out and named, and the exit status is 1. A run
that was cut off goes on with the same command and --resume.
"""

import argparse
import os

from ..prediction import (
    Classifier,
    Columns,
    ExportedClassifier,
    Images,
    check_out,
    find_images,
    predict,
)
from ..prediction.columns import LABELS, OUTPUTS
from ..progress import bar
from ..visualization import Explainer
from ..visualization.gallery import Gallery, check_folder
from . import console
from .building import build_model, check_checkpoint, load_config
from .command import command
from .flags import config_flag, engine_flag, options_flag, parser


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument('checkpoint', help='checkpoint file, or an exported '
                       '.onnx file')
    found.add_argument('images', nargs='*', metavar='IMAGES',
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
    found.add_argument('-b', '--batch-size', type=int, metavar='N',
                       help='that of the test by default')
    found.add_argument('-j', '--workers', type=int, metavar='N',
                       help='processes that read images; those of the test '
                       'by default')
    engine_flag(found)
    found.add_argument('--amp', action='store_true',
                       help='automatic mixed precision')
    found.add_argument('--cam', metavar='DIR', help='folder for pictures of '
                       'what speaks for the likeliest classes, --topk of them')
    found.add_argument('--resume', action='store_true',
                       help='go on with a run that was cut off')
    found.add_argument('--force', action='store_true', help='replace a table '
                       'that is there, or what a run that was cut off left')
    options_flag(found)
    # of what runs a config; nothing is trained, logged or distributed
    found.set_defaults(work_dir=None, launcher='none', local_rank=0,
                       no_pin_memory=False)
    found.parse_args = found.parse_intermixed_args  # flags between images
    return found


def run(args: argparse.Namespace) -> int | None:
    """Predict."""
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        raise ValueError(
            'predictions are made by one process: start it without a '
            'launcher, once for each GPU with a part of the images.')
    if args.config.endswith('.onnx'):  # without a config
        args.images.insert(0, args.checkpoint)
        args.config, args.checkpoint = None, args.config
    if not args.images:
        raise ValueError('there are no IMAGES: name a folder, a pattern, a '
                         'list, or images.')
    columns = Columns(args.topk, args.threshold, args.all_classes,
                      args.label_type, args.output_type)
    check_out(args.out, resume=args.resume, force=args.force)
    check_checkpoint(args.checkpoint)
    images = find_images(args.images)
    if args.cam:
        _check_pictures(args, images)
    cfg = None if args.config is None else load_config(args)
    if args.checkpoint.endswith('.onnx'):
        scorer = ExportedClassifier(args.checkpoint, cfg)
        about = dict(network=f'{scorer.about.network}, {args.checkpoint}')
    else:
        scorer = Classifier(build_model(cfg, args, whole=True), cfg)
        about = console.describe_model(scorer.model, cfg)
    # ahead of the pass: a model may have no exact maps
    explainer = Explainer(
        scorer.model, scorer.samples(images).pipeline, scorer.classes,
        topk=args.topk or 1) if args.cam else None
    console.header(dict(
        about, images=f'{len(images)} in {images.root or "."}'))
    found = predict(
        scorer, images, args.out, columns, batch_size=args.batch_size,
        workers=args.workers, engine=args.engine, amp=args.amp,
        resume=args.resume, force=args.force)
    speed = f', {found.speed:.1f} images/s' if found.speed else ''
    console.header(dict(engine=f'{found.engine}{speed}',
                        rows=str(found.rows)))
    if explainer:
        _draw(explainer, images, found.skipped, args.cam)
    for name, reason in found.skipped.items():
        console.note(f'skipped {name!r}: {reason}')
    if found.skipped:
        console.note(f'{len(found.skipped)} of {len(images)} images cannot '
                     'be read, and are not in the table.')
    console.result({}, None, args.out)
    return 1 if found.skipped else None


def _check_pictures(args: argparse.Namespace, images: Images) -> None:
    """Refuse a folder for pictures that something else has.

    Raises:
        FileExistsError: If it holds files.
        ValueError: If the images are in it, or there can be no pictures.
    """
    if args.checkpoint.endswith('.onnx'):
        raise ValueError('--cam is of a checkpoint: leave it out, or name the '
                         f'checkpoint that {args.checkpoint!r} is from.')
    try:
        check_folder(args.cam, images, args.force or args.resume)
    except (FileExistsError, ValueError) as error:
        raise type(error)(str(error).replace('out=', 'cam=', 1)) from None


def _draw(explainer: Explainer, images: Images, skipped: dict[str, str],
          out: str) -> None:
    """Draw all images that could be read."""
    rows = [row for row, name in enumerate(images.names)
            if name not in skipped]
    gallery = Gallery(out, [images.names[row] for row in rows])
    with bar(len(rows), 'drawing') as advance:
        for i, row in enumerate(rows):
            gallery.add(i, explainer(dict(img_path=images[row])))
            advance(1)
    gallery.finish()
    console.header(dict(maps=f'{console.short(out)}'
                        + f', {explainer.note}' * bool(explainer.note)))


main = command(flags, run)
