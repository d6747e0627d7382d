r"""Write a trained model as one file that runs without this package.

    gap-plugin export digits/test_nfnet work_dirs/test_nfnet/epoch_12.pth \
        --out digits.onnx

--format onnx (the default): for onnxruntime and what else reads ONNX. It
takes photos, uint8 (N, H, W, 3) of any size, R, G, B, and gives the scores of
the classes: the test pipeline is in the file. With --no-preprocessing it takes
float32 (N, C, H, W) as they leave the data preprocessor; the batch is of any
size, height and width are fixed.

--format timm: a folder that timm.create_model('local-dir:FOLDER',
pretrained=True) loads, as timm writes it for the weights hub. Where timm's
network has other layers behind the map, it is refused with their names.

A file is compared with the model on images of the config's test set before it
gets its name; one that is too far off is not written.
"""

import argparse
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn

from ..engine.building import build_classifier, check_classes
from ..export import export_onnx, export_timm, export_torch, push_to_hub
from ..export.hub import check_repository
from ..export.to_timm import check_place
from ..features.images import build_dataset, loader_config
from . import console
from .building import load_config
from .command import command
from .flags import config_flag, options_flag, parser


@dataclass(frozen=True)
class Model:
    """What is exported: a model, what from, and its classes."""

    model: nn.Module
    cfg: Config
    classes: list[str] | None
    dataset: Any


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        write: Writes it; gives lines for people.
        suffix: What its name ends in; an empty one is of a folder.
        options: Flags that it takes, beside those of all formats.
        following: The command to type next; ``{out}`` is the file.
        needs_images: Whether it can only be checked on images of the data.
    """

    write: Callable[[Model, argparse.Namespace], dict[str, str]]
    suffix: str
    options: tuple[str, ...] = ()
    following: str | None = None
    needs_images: bool = True


def _onnx(found: Model, args: argparse.Namespace) -> dict[str, str]:
    int8 = build_dataset(loader_config(found.cfg, 'train'), 'train',
                         found.model) if args.int8 else None
    return export_onnx(
        found.model, found.dataset, args.out, classes=found.classes,
        preprocessing=args.preprocessing, cam=args.cam, logits=args.logits,
        int8=int8, count=args.images).lines()


def _torch(found: Model, args: argparse.Namespace) -> dict[str, str]:
    return export_torch(
        found.model, found.dataset, args.out, classes=found.classes,
        cam=args.cam, logits=args.logits, count=args.images).lines()


def _timm(found: Model, args: argparse.Namespace) -> dict[str, str]:
    lines = export_timm(
        found.model, args.out, found.dataset, classes=found.classes,
        count=args.images or 32, force=args.force).lines()
    if args.push_to_hub:
        console.header(lines)
        lines = {'pushed': push_to_hub(args.out, args.push_to_hub)}
    return lines


#: --format -> how it is written.
FORMATS = {
    'onnx': Format(_onnx, '.onnx', ('preprocessing', 'cam', 'logits', 'int8',
                                    'images')),
    'torch': Format(_torch, '.pt2', ('cam', 'logits', 'images')),
    'timm': Format(_timm, '', ('images', 'push_to_hub'),
                   needs_images=False),
}


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument('checkpoint', help='checkpoint file of the model')
    found.add_argument('--format', choices=list(FORMATS), default='onnx',
                       help='onnx by default')
    found.add_argument('--out', required=True, help='the file, which ends in '
                       + ', '.join(f'{kind.suffix} ({name})'
                                     for name, kind in FORMATS.items()
                                     if kind.suffix)
                       + '; a folder (timm)')
    found.add_argument('--force', action='store_true',
                       help='overwrite what is there')
    found.add_argument('--no-preprocessing', dest='preprocessing',
                       action='store_false', help='onnx: float32 (N, C, H, W) '
                       'in place of photos, height and width fixed')
    found.add_argument('--cam', action='store_true',
                       help='onnx: the class activation maps as second output')
    found.add_argument('--logits', action='store_true', help='onnx: logits '
                       'in place of probabilities')
    found.add_argument('--int8', action='store_true', help='onnx: round to '
                       'bytes, by 64 images of the training set; refused '
                       'where it costs over a point of accuracy')
    found.add_argument('--images', type=int, metavar='N',
                       help='images of the test set that the file is '
                       'compared on (32; 1000 with --int8)')
    found.add_argument('--push-to-hub', metavar='REPO', help='timm: upload '
                       'the folder to this repository of Hugging Face, too')
    options_flag(found)
    found.set_defaults(work_dir=None, launcher='none', local_rank=0,
                       no_pin_memory=True)
    return found


def check_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot be written, ahead of any work.

    Raises:
        ValueError: If a flag is not of the format, or the name does not fit
            it.
        FileExistsError: If there is something of that name.
        FileNotFoundError: If its folder or the checkpoint is not there.
    """
    kind, out = FORMATS[args.format], Path(args.out)
    named = {option: name for name, each in FORMATS.items()
             for option in each.options}
    defaults = vars(flags().parse_args(['config', 'file', '--out', 'out']))
    for option, owner in named.items():
        if option not in kind.options and (
                getattr(args, option) != defaults[option]):
            flag = next(action.option_strings[-1]
                        for action in flags()._actions
                        if action.dest == option)
            raise ValueError(f'--format {args.format} has no {flag}, which '
                             f'--format {owner} takes: leave it out.')
    if kind.suffix and out.suffix != kind.suffix:
        raise ValueError(f'--format {args.format} writes a {kind.suffix} '
                         f'file, and --out is {args.out!r}: give it '
                         'that suffix.')
    if not kind.suffix and out.suffix in {
            each.suffix for each in FORMATS.values() if each.suffix}:
        raise ValueError(f'--format {args.format} writes a folder, and --out '
                         f'is {args.out!r}: name a folder.')
    if args.images is not None and args.images < 1:
        raise ValueError(f'images={args.images} must be 1 or more.')
    if out.is_dir() and kind.suffix:
        raise FileExistsError(f'--out {args.out!r} is a folder: name a file.')
    if args.push_to_hub is not None:
        check_repository(args.push_to_hub)
    if not kind.suffix:
        check_place(out, args.force)
    if out.exists() and not args.force:
        raise FileExistsError(f'{args.out!r} exists: name another one, or '
                              'use --force.')
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f'--out {args.out!r}: there is no folder '
                                f'{str(out.parent)!r}; make it first.')
    if '://' not in args.checkpoint and not Path(args.checkpoint).exists():
        raise FileNotFoundError(f'checkpoint {args.checkpoint!r} is not '
                                'there: name one that training has written.')


def load(cfg: Config, args: argparse.Namespace) -> Model:
    """Build the model with its weights, and the images it is compared on.

    Raises:
        ValueError: If the checkpoint is of other classes or another model,
            or there are no images.
    """
    split = 'test' if cfg.get('test_dataloader') else 'val'
    try:
        loader = loader_config(cfg, split)
    except ValueError:
        if FORMATS[args.format].needs_images:
            raise ValueError(
                'the config has no test_dataloader and no val_dataloader, '
                'and a file is compared with the model on images: add one.'
            ) from None
        loader = None
    model = build_classifier(cfg, args.checkpoint, whole=True).eval()
    dataset = loader and build_dataset(loader, split, model)
    known = dataset.metainfo.get('classes') if dataset else None
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu')
    check_classes(checkpoint, known, args.checkpoint, split)
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    classes = meta.get('classes') or known
    return Model(model, cfg, None if classes is None else
                 [str(name) for name in classes], dataset)


def run(args: argparse.Namespace) -> None:
    """Export."""
    check_flags(args)
    cfg = load_config(args)
    found = load(cfg, args)
    console.header(console.describe_model(found.model, cfg))
    kind = FORMATS[args.format]
    console.header(kind.write(found, args))
    following = kind.following and kind.following.format(
        out=shlex.quote(args.out))
    console.result({}, None, args.out, following)


main = command(flags, run)
