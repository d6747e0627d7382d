r"""Write a complete config for a network and your data, ready to train.

    gap-plugin new-config resnet50 --data-root data/flowers
    gap-plugin new-config vit_small_patch16_224 --data-root data/birds \
        --recipe linear --out configs/birds.py

A folder holds train/<class>/ and val/<class>/, or just <class>/, which is
split by a seed. With --train-list and --val-list it is described by lists of
lines 'path/of/image.jpg label' instead.
"""

import argparse
import shlex
from dataclasses import fields
from pathlib import Path

from ..config_writer import NewConfig, write_config
from ..datasets.folder import KNOWN
from ..recipes import RECIPES
from . import console
from .command import command
from .flags import parser


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    found.add_argument('model', help='any name of timm')
    found.add_argument('--data-root', type=Path, required=True,
                       help='folder of the images')
    found.add_argument('--dataset', default='folder',
                       choices=['folder', *KNOWN],
                       help='a folder of yours, or a dataset of MMPretrain')
    found.add_argument('--train-list', type=Path,
                       help="lines 'image label', relative to --data-root")
    found.add_argument('--val-list', type=Path,
                       help='the same, of the validation images')
    found.add_argument('--classes', type=Path,
                       help='names of the classes, a line each, for lists')
    found.add_argument('--val-share', type=float, default=0.2,
                       help='share of each class that is held out, where '
                       'there is no val/ (default 0.2)')
    found.add_argument('--recipe', choices=list(RECIPES), default='finetune',
                       help='train all layers (default), or neck and head')
    found.add_argument('--checkpoint', type=Path,
                       help='local weights of the network, in place of '
                       'those of the hub')
    found.add_argument('--img-size', type=int,
                       help="side of the image; the network's own by default")
    found.add_argument('--epochs', type=int,
                       help='as many as give 500 steps by default; 10 at '
                       'least (finetune) or 20 (linear), 100 at most')
    found.add_argument('--batch-size', type=int, default=32,
                       help='images a step (default 32)')
    found.add_argument('--workers', type=int, help='processes that load '
                       'images; one a core by default, 4 at most')
    found.add_argument('--seed', type=int, default=0,
                       help='of the split and of the training')
    found.add_argument('--out', type=Path, help='default: '
                       '<model>_<name of the data root>.py')
    found.add_argument('--force', action='store_true',
                       help='overwrite existing files')
    return found


def run(args: argparse.Namespace) -> None:
    """Write."""
    request = NewConfig(**{field.name: getattr(args, field.name)
                           for field in fields(NewConfig)})
    if request.from_scratch:
        console.warn(f'timm has no weights for {request.model!r}: it is '
                     'trained from scratch')
    data, files = write_config(request)
    classes = f'{data.count} classes'
    if data.classes:
        classes += f': {", ".join(data.classes[:5])}' + (
            ', ...' if data.count > 5 else '')
    console.header(dict(
        network=request.model, classes=classes,
        **({} if data.size is None else dict(train=f'{data.size} images'))))
    *lists, config = files
    for path in lists:
        console.say(str(path))
    console.result({}, None, config,
                   f'gap-plugin train {shlex.quote(str(config))}')


main = command(flags, run)
