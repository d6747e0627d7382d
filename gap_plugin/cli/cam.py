r"""Draw where a model sees its classes: exact class activation maps.

    gap-plugin cam digits/test_nfnet \
        work_dirs/test_nfnet/best_accuracy_top1_epoch_9.pth photos --out maps

The mean of a map is the logit of its class. Red is for it, blue against it.
Each image becomes a PNG file of the same name, several get contact sheets.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.building import build_classifier
from ..features.images import Bad, Rows, told
from ..files import written_whole
from ..prediction.images import Images, Samples, find_images
from ..progress import bar
from ..visualization import Explainer, Explanation, numbers_of, picture, sheet
from . import console
from .building import check_checkpoint, load_config
from .command import command
from .flags import config_flag, options_flag, parser

#: Images of a contact sheet, and the beginning of its name.
_OF_SHEET, _SHEET = 24, 'contact_sheet'


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('images', nargs='+', help='folders, files, patterns '
                       'or lists of images; folders that are named as '
                       'classes tell the true ones')
    found.add_argument('--out', required=True, help='folder for the pictures')
    found.add_argument('--classes', nargs='+', metavar='NAME',
                       help='classes to show; by default the likeliest one, '
                       'the true one and one that is not there')
    found.add_argument('--topk', type=int, default=1, metavar='K',
                       help='the K likeliest classes, without --classes')
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
    found.set_defaults(launcher='none', local_rank=0, work_dir=None,
                       no_pin_memory=False)
    return found


def run(args: argparse.Namespace) -> int | None:
    """Draw."""
    if args.max_images is not None and args.max_images < 1:
        raise ValueError(f'max_images={args.max_images} must be 1 or more.')
    cfg = load_config(args)
    check_checkpoint(args.checkpoint)
    images = find_images(args.images)
    out = Path(args.out)
    _check_out(out, images, args.force)
    model = build_classifier(cfg, args.checkpoint).eval()
    names = model._dataset_meta.get('classes')
    explainer = Explainer(
        model, Samples(images, cfg, model).pipeline, names,
        None if args.classes is None else numbers_of(args.classes, names),
        args.topk, args.up_to_factor)
    if names is None:
        console.warn('the checkpoint does not name its classes: they are '
                     'called by their numbers, and folders tell none.')
    rows = range(len(images))
    if args.max_images and args.max_images < len(images):
        rows = np.linspace(0, len(images) - 1, args.max_images).round()
        rows = rows.astype(int).tolist()
    some = '' if len(rows) == len(images) else (
        f'{len(rows)} of {len(images)}, evenly spread')
    console.header(dict(console.describe_model(model, cfg),
                        images=some or str(len(images))))
    bad, right = _draw_all(rows, images, explainer, out, names)
    if explainer.note:
        console.say(f'maps are {explainer.note}')
    if len(bad) == len(rows):
        raise ValueError(told(bad, images, args.images[0]))
    if right:
        console.say(f'{sum(right)} of {len(right)} images of known classes '
                    'are predicted right')
    console.result({}, None, out)
    if bad:
        console.warn(told(bad, images, args.images[0]))
    return 1 if bad else None


def _check_out(out: Path, images: Images, force: bool) -> None:
    """Refuse a place that is taken.

    Raises:
        ValueError: With what to do.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f'out={str(out)!r} is a file: name a folder.')
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ValueError(f'out={str(out)!r} holds files: name another folder,'
                         ' or write over what is there with force=True.')
    inside = out.resolve()
    if any(inside in Path(image).resolve().parents for image in images):
        raise ValueError(f'out={str(out)!r} is where the images are: name '
                         'another folder.')


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


def _draw_all(rows: Sequence[int], images: Images, explainer: Explainer,
              out: Path, names: Sequence[str] | None
              ) -> tuple[dict[int, str], list[bool]]:
    """Write a picture of each image, and contact sheets of several.

    Returns:
        Rows that cannot be read, and why; whether the others are predicted
        right, where that is known.
    """
    explained = Rows(_Explained(images, explainer, names), images)
    places = dict(zip(rows, _places([images.names[row] for row in rows]),
                      strict=True))
    bad: dict[int, str] = {}
    right: list[bool] = []
    page: list[Explanation] = []
    sheets = -(-len(rows) // _OF_SHEET)
    made = 0
    with bar(len(rows), 'drawing') as advance:
        for i, row in enumerate(rows):
            found = explained[row]
            if isinstance(found, Bad):
                bad[row] = found.reason
            else:
                _save(picture(found), out / places[row])
                page.append(found)
                right += [] if found.right is None else [found.right]
            if len(rows) > 1 and page and (
                    len(page) == _OF_SHEET or i + 1 == len(rows)):
                made += 1
                number = f'_{made:0{len(str(sheets))}}' if sheets > 1 else ''
                _save(sheet(page), out / f'{_SHEET}{number}.png')
                page = []
            advance(1)
    return bad, right


def _places(names: Sequence[str]) -> list[str]:
    """Where the pictures of images lie: each its own place."""
    parts = [[part.replace(':', '_') for part in name.split('/')
              if part not in ('', '.', '..')] for name in names]

    def forms() -> Iterator[list[str]]:
        yield [Path(*each).with_suffix('.png').as_posix() for each in parts]
        yield ['/'.join(each) + '.png' for each in parts]
        yield [f'{i}/{"/".join(each)}.png' for i, each in enumerate(parts)]

    for found in forms():
        folded = {each.casefold() for each in found}
        if len(folded) == len(found) and not any(
                each.startswith(_SHEET) for each in folded):
            break
    return found


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        # by name of the format: the file is put in its place afterwards
        figure.savefig(temporary, dpi=110, format='png')


main = command(flags, run)
