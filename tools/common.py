"""What the tools share: flags, and config to runner or model."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmpretrain.registry import MODELS
from torch import nn

import gap_plugin  # noqa: F401, registers the parts for every config
from gap_plugin.compat import init_cpu_group
from gap_plugin.probing import FeatureStore, extract
from gap_plugin.stock.old_names import numpy_in1d

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing have in common."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; '
                        'work_dirs/<name of the config> by default')
    parser.add_argument('--amp', action='store_true',
                        help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true',
                        help='no page-locked memory in the dataloaders')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='change the config: model.backbone.model_name=resnet18, '
        'lists as key="[a,b]" or key=a,b')
    parser.add_argument('--launcher', default='none',
                        choices=['none', 'pytorch', 'slurm', 'mpi'],
                        help='what started this process')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='set by torch.distributed.launch')


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the shared flags, ``--cfg-options`` last.

    Returns:
        The config, with a ``work_dir``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    for name in DATALOADERS:
        loader = cfg.get(name)
        if loader is not None:
            loader.setdefault('pin_memory', get_device() == 'cuda')
            loader.setdefault('collate_fn', dict(type='default_collate'))
            if args.no_pin_memory:
                loader.pin_memory = False
    return cfg


def build_runner(cfg: Config, args: argparse.Namespace) -> Runner:
    """Build the runner that a config asks for.

    On a machine without a GPU, torchrun's processes talk by gloo.
    """
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    numpy_in1d()  # for the host's metrics of retrieval
    if init_cpu_group(args.launcher):
        wrapper = cfg.get('model_wrapper_cfg') or dict(
            type='MMDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False))
        wrapper.setdefault('device_ids', None)
        cfg.model_wrapper_cfg = wrapper
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def store_parser(description: str) -> argparse.ArgumentParser:
    """A parser for what extracts features."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--checkpoint', help='weights of the model; those '
                        'that the config loads by default')
    parser.add_argument('--out', help='folder for the stores; '
                        '<work-dir>/features by default')
    parser.add_argument('--dtype', choices=['float32', 'float16'],
                        default='float32', help='of the stored features')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave unreadable images out')
    parser.add_argument('--force', action='store_true',
                        help='replace a store that something else has made')
    parser.add_argument('--views', type=int, default=0, metavar='N',
                        help='N augmented passes of the training images by '
                        'their own pipeline, in addition')
    add_shared_flags(parser)
    return parser


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the settings that a probe is trained with."""
    parser.add_argument('--lr', type=float, nargs='+', metavar='RATE',
                        help='learning rates in place of that of the config; '
                        'the best is kept')
    parser.add_argument('--weight-decay', type=float, nargs='+',
                        metavar='DECAY', help='weight decays, likewise')


def extract_splits(model: nn.Module, cfg: Config, args: argparse.Namespace,
                   splits: Iterable[str]) -> dict[str, FeatureStore]:
    """Stores of several splits, as the flags say.

    Args:
        model: The classifier.
        cfg: Its config.
        args: Flags of :func:`store_parser`.
        splits: Which ones; ``view_0`` and so on for augmented passes of the
            training split come along.

    Raises:
        ValueError: If something does not fit.
    """
    if args.views < 0:
        raise ValueError(f'--views must be 0 or more, got {args.views}.')
    out = Path(args.out or Path(cfg.work_dir) / 'features')
    passes = {split: (split, None) for split in splits}
    passes |= {f'view_{i}': ('train', i) for i in range(args.views)}
    return {
        name: extract(
            model, cfg, split, out / name, dtype=args.dtype, amp=args.amp,
            skip_bad=args.skip_bad, force=args.force, view=view)
        for name, (split, view) in passes.items()
    }


def build_classifier(cfg: Config, args: argparse.Namespace) -> nn.Module:
    """Build the model of a config, with its weights, outside of a runner."""
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    if args.launcher != 'none' and not init_cpu_group(args.launcher):
        init_dist(args.launcher, **(cfg.get('env_cfg') or {}).get(
            'dist_cfg', {}))
    # what the config leaves to chance is the same in every run
    torch.manual_seed((cfg.get('randomness') or {}).get('seed') or 0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    checkpoint = args.checkpoint or cfg.get('load_from')
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device())
