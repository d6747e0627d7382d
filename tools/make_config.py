r"""Write a complete config for a network and your data, ready to train.

    python tools/make_config.py resnet50 --data-root data/flowers
    python tools/make_config.py vit_small_patch16_224 --data-root data/birds \\
        --recipe linear --out configs/birds.py

A folder holds train/<class>/ and val/<class>/, or just <class>/, which is
split by a seed. With --train-list and --val-list it is described by lists of
lines 'path/of/image.jpg label' instead.
"""

import argparse
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from gap_plugin.datasets import some
from gap_plugin.files import written_whole
from gap_plugin.timm_features import check_name, is_registered
from image_data import KNOWN, Data, folder_data, known_data, listed_data

#: recipe -> what it is, learning rate, epochs, arguments of the backbone
RECIPES = {
    'linear': ('The backbone is frozen, BN and the linear layer are trained.',
               1e-3, 20, dict(frozen_stages='all')),
    'finetune': ('All layers are trained.', 1e-4, 30, {}),
}


def literal(value: Any, indent: int) -> str:
    """A value as it stands in a config, one item a line where it is long."""
    text = repr(value)
    if len(text) + indent < 70 or not isinstance(value, (dict, list)):
        return text
    pad = ' ' * (indent + 4)
    if isinstance(value, list):
        lines = [f'{pad}{literal(v, indent + 4)},\n' for v in value]
        return f'[\n{"".join(lines)}{" " * indent}]'
    lines = [f'{pad}{k}={literal(v, indent + 4)},\n'
             for k, v in value.items()]
    return f'dict(\n{"".join(lines)}{" " * indent})'


def write_config(args: argparse.Namespace, data: Data) -> str:
    """The text of the config."""
    about, rate, epochs, frozen = RECIPES[args.recipe]
    epochs = args.epochs or epochs
    batch = args.batch_size
    if data.size is not None:
        batch = max(min(batch, data.size), 2)
    backbone = dict(model_name=args.model, **frozen)
    comment = ''
    if args.checkpoint:
        backbone['checkpoint_path'] = args.checkpoint
    elif has_weights(args.model):
        backbone['pretrained'] = True
    else:
        comment = '  # timm has no pretrained weights for this network\n'
    if args.img_size:
        backbone['img_size'] = args.img_size
    if data.in_channels != 3:
        backbone['in_channels'] = data.in_channels
    loader = dict(num_workers=args.workers,
                  persistent_workers=args.workers > 0)
    load = "    dict(type='LoadImageFromFile', imdecode_backend='pillow'),\n" \
        if data.load else ''
    flip = ', hflip=0.' if data.in_channels == 1 else ''  # digits
    arguments = ''.join(f'        {k}={v!r},\n' for k, v in backbone.items())
    rgb = ('data_preprocessor = dict(to_rgb=False)  # the dataset gives RGB\n'
           if data.rgb else '')
    warmup = max(epochs // 10, 1) if epochs > 1 else 0
    schedule = ''
    if warmup:
        schedule = f"""    dict(
        type='LinearLR', start_factor=0.01, end={warmup},
        convert_to_iter_based=True),
"""
    return f"""# {args.model}, pooled, normalised and classified. {about}
# Widths, mean, std, image size and crop follow from the network: to take
# another one, change model_name, here or on the command line.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['gap_plugin'], allow_failed_imports=False)

model = dict(
    type='TimmFeatureClassifier',
    backbone=dict(
        type='TimmFeatureBackbone',
{comment and '      ' + comment}{arguments}    ),
    neck=[dict(type='GAPNeck'), dict(type='BNNeck')],
    head=dict(type='LinearHead', num_classes={data.count}))
{rgb}
# timm's preprocessing of this network
train_pipeline = [
{load}    dict(type='TimmTrainTransform'{flip}),
    dict(type='PackInputs'),
]
test_pipeline = [
{load}    dict(type='TimmTestTransform'),
    dict(type='PackInputs'),
]

train_dataset = {literal(data.train, 0)}
val_dataset = {literal(data.val, 0)}
train_dataloader = dict(
    batch_size={batch},
    num_workers={loader['num_workers']},
    persistent_workers={loader['persistent_workers']},
    drop_last=True,  # BN cannot train on a last batch of one
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **train_dataset))
val_dataloader = dict(
    batch_size={batch},
    num_workers={loader['num_workers']},
    persistent_workers={loader['persistent_workers']},
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **val_dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk={(1, 5) if data.count > 9 else (1,)
                                            !r})
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr={rate}, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
{schedule}    dict(
        type='CosineAnnealingLR', begin={warmup}, end={epochs},
        convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size={batch})

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(
        type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2,
        save_best='auto'),
    visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed={args.seed})
"""


def has_weights(name: str) -> bool:
    """Whether timm has pretrained weights under a name."""
    if not is_registered(name):
        return True  # a repository or a folder of weights
    cfg = get_pretrained_cfg(name)
    return cfg is None or cfg.has_weights  # None: a former name


def read_data(args: argparse.Namespace, read: bool) -> Data:
    """The dataset that the flags describe.

    Args:
        args: Flags of :func:`parse_args`.
        read: Whether files that cannot be read are refused.

    Raises:
        ValueError: If it cannot be trained on.
    """
    root = args.data_root.expanduser().resolve()
    if args.dataset in KNOWN:
        return known_data(args.dataset, root)
    if not root.is_dir():
        raise ValueError(f'--data-root {str(root)!r} is not a folder.')
    if bool(args.train_list) != bool(args.val_list):
        raise ValueError('--train-list and --val-list belong together: give '
                         'both.')
    if args.train_list:
        names = args.classes and args.classes.read_text(
            encoding='utf-8').split('\n')
        names = names and [n.strip() for n in names if n.strip()]
        return listed_data(root, args.train_list, args.val_list, names)
    return folder_data(root, args.out.resolve(), args.val_share, args.seed,
                       read)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read a command line, that of the process by default."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='any name of timm')
    parser.add_argument('--data-root', type=Path, required=True)
    parser.add_argument('--dataset', default='folder',
                        choices=['folder', *KNOWN],
                        help='a folder of yours, or a dataset of MMPretrain')
    parser.add_argument('--train-list', type=Path,
                        help="lines 'image label', relative to --data-root")
    parser.add_argument('--val-list', type=Path)
    parser.add_argument('--classes', type=Path,
                        help='names of the classes, a line each, for lists')
    parser.add_argument('--val-share', type=float, default=0.2,
                        help='share of each class that is held out, where '
                        'there is no val/ (default 0.2)')
    parser.add_argument('--recipe', choices=list(RECIPES), default='finetune')
    parser.add_argument('--checkpoint', type=Path,
                        help='local weights of the network, in place of '
                        'those of the hub')
    parser.add_argument('--img-size', type=int)
    parser.add_argument('--epochs', type=int)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='default: '
                        '<model>_<name of the data root>.py')
    parser.add_argument('--force', action='store_true',
                        help='overwrite existing files')
    return parser.parse_args(argv)


def config_files(args: argparse.Namespace, read: bool = True
                 ) -> tuple[Data, dict[Path, str]]:
    """The data, and the files to write: their paths and texts.

    Args:
        args: Flags of :func:`parse_args`.
        read: As in :func:`read_data`.

    Raises:
        ValueError: If the data cannot be trained on.
    """
    data = read_data(args, read)
    return data, {**data.lists, args.out: write_config(args, data)}


def make_config(args: argparse.Namespace) -> str:
    """Write the files, and say what was written.

    Args:
        args: Flags of :func:`parse_args`.

    Raises:
        ValueError: If a flag or the data is wrong, or a file is there.
    """
    check_name(args.model)
    if not args.checkpoint and not has_weights(args.model):
        if args.recipe == 'linear':
            raise ValueError(
                f'--recipe linear: timm has no weights for {args.model!r}, '
                'and a frozen network needs some; give --checkpoint, or use '
                '--recipe finetune.')
        print(f'timm has no weights for {args.model!r}: it is trained from '
              'scratch')
    if not 0 < args.val_share < 1:
        raise ValueError(f'--val-share must lie between 0 and 1, got '
                         f'{args.val_share}.')
    for flag in ('epochs', 'batch_size', 'img_size'):
        value = getattr(args, flag)
        if value is not None and value < 1 + (flag == 'batch_size'):
            raise ValueError(f'--{flag.replace("_", "-")} is too small: '
                             f'{value}.')
    if args.out is None:
        stem = f'{args.model}_{args.data_root.resolve().name}'
        args.out = Path(re.sub(r'[^\w-]', '_', stem) + '.py')
    if args.out.suffix != '.py' or args.out.is_dir():
        raise ValueError(f'--out {str(args.out)!r} must be a file that ends '
                         'in .py.')
    if args.checkpoint is not None:
        if not args.checkpoint.is_file():
            raise ValueError(f'--checkpoint {str(args.checkpoint)!r} is not a '
                             'file.')
        args.checkpoint = str(args.checkpoint.resolve())
    data, files = config_files(args)
    there = [str(path) for path in files if path.exists()]
    if there and not args.force:
        raise ValueError(f'{some(there)} exist: --force overwrites, --out '
                         'names another file.')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding='utf-8')
    shown = '' if not data.classes else (
        f': {", ".join(data.classes[:5])}'
        f'{", ..." if len(data.classes) > 5 else ""}')
    return (f'wrote {", ".join(map(str, files))}: {data.count} '
            f'classes{shown}\n'
            f'python tools/train.py {shlex.quote(str(args.out))}')


def main() -> None:
    """Write."""
    sys.stdout.reconfigure(errors='backslashreplace')  # names of classes
    print(make_config(parse_args()))


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
