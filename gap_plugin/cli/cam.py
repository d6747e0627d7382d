r"""Draw where a model sees its classes: exact class activation maps.

    gap-plugin cam digits/test_nfnet \
        work_dirs/test_nfnet/best_accuracy_top1_epoch_9.pth photos --out maps

IMAGES are folders, which are searched to any depth, patterns such as
'photos/**/*.jpg', lists of images, a line each, or images. A folder that is
named as a class tells the true one. The mean of a map is the logit of its
class: red is for it, blue against it. Each image becomes a PNG file of its
name, several get contact sheets. Images that cannot be read are left out and
named, and the exit status is 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..features.images import Bad, Rows
from ..prediction import find_images
from ..prediction.images import Images, Samples
from ..progress import bar
from ..visualization import Explainer, Explanation, numbers_of
from ..visualization.gallery import Gallery, check_folder
from . import console
from .building import build_model, check_checkpoint, load_config
from .command import command
from .flags import config_flag, options_flag, parser


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('images', nargs='+', metavar='IMAGES',
                       help='folders, patterns, lists of images, or images')
    found.add_argument('--out', required=True, metavar='DIR',
                       help='folder for the pictures')
    found.add_argument('--classes', nargs='+', metavar='NAME',
                       help='classes to show; by default the likeliest one, '
                       'the true one and one that is not there')
    found.add_argument('--topk', type=int, default=1, metavar='N',
                       help='the N likeliest classes, without --classes')
    found.add_argument('--max-images', type=int, metavar='N',
                       help='N of the images, evenly spread; all by default')
    found.add_argument('--up-to-factor', action='store_true',
                       help='take maps that are exact up to a factor an '
                       'image (ArcFaceClsHead) or an image and channel '
                       '(GeneralizedMeanPooling)')
    found.add_argument('--force', action='store_true',
                       help='write to a folder that holds files, and over '
                       'pictures of the same names')
    options_flag(found)
    # of what runs a config; nothing is trained, logged or distributed
    found.set_defaults(work_dir=None, launcher='none', local_rank=0,
                       no_pin_memory=False)
    return found


def run(args: argparse.Namespace) -> int | None:
    """Draw."""
    if args.max_images is not None and args.max_images < 1:
        raise ValueError(f'max_images={args.max_images} must be 1 or more.')
    images = find_images(args.images)
    check_folder(args.out, images, args.force)
    cfg = load_config(args)
    check_checkpoint(args.checkpoint)
    model = build_model(cfg, args, whole=True).eval()
    names = model._dataset_meta.get('classes')
    explainer = Explainer(
        model, Samples(images, cfg, model).pipeline, names,
        None if args.classes is None else numbers_of(args.classes, names),
        args.topk, args.up_to_factor)
    if names is None:
        console.warn('the checkpoint does not name its classes: they are '
                     'called by their numbers, and folders tell none.')
    rows = np.arange(len(images))
    if args.max_images and args.max_images < len(images):
        rows = np.linspace(0, len(images) - 1, args.max_images).astype(int)
    some = '' if len(rows) == len(images) else (
        f'{len(rows)}, evenly spread, of ')
    console.header(dict(console.describe_model(model, cfg), images=(
        f'{some}{len(images)} in {images.root or "."}')))
    explained = Rows(_Explained(images, explainer, names), images)
    gallery = Gallery(args.out, [images.names[row] for row in rows])
    bad, right = {}, []
    with bar(len(rows), 'drawing') as advance:
        for i, row in enumerate(rows):
            found = explained[row]
            if isinstance(found, Bad):
                bad[images.names[row]] = found.reason
            else:
                gallery.add(i, found)
                right += [] if found.right is None else [found.right]
            advance(1)
    gallery.finish()
    if explainer.note:
        console.header(dict(maps=explainer.note))
    if right:
        console.header(dict(right=f'{sum(right)} of {len(right)} images '
                            'whose folder is named as a class'))
    for name, reason in bad.items():
        console.note(f'skipped {name!r}: {reason}')
    if bad:
        console.note(f'{len(bad)} of {len(rows)} images cannot be read, and '
                     'have no picture.')
    if len(bad) < len(rows):
        console.result({}, None, args.out)
    return 1 if bad else None


class _Explained(Sequence):
    """Images as their explanations."""

    def __init__(self, images: Images, explainer: Explainer,
                 names: Sequence[str] | None) -> None:
        self.images, self.explainer = images, explainer
        self.numbers = {str(name): i for i, name in enumerate(names or ())}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Explanation:
        info: dict[str, Any] = dict(img_path=self.images[row])
        folders = [Path(self.images.root).resolve().name,
                   *self.images.names[row].split('/')[:-1]]
        for folder in reversed(folders):
            if folder in self.numbers:
                info['gt_label'] = self.numbers[folder]
                break
        return self.explainer(info)


main = command(flags, run)
