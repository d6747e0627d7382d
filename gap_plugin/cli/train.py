"""Train a model from a config, with the flags of MMPretrain's own tool."""

import argparse

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from . import console
from .building import DATALOADERS, build_runner, load_config
from .command import command
from .console_hook import ConsoleHook
from .flags import config_flag, parser, run_flags


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from a checkpoint; the last one in the work dir if none '
        'is named')
    found.add_argument('--no-validate', action='store_true',
                       help='no validation during training')
    found.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate with the batch size, by '
        'auto_scale_lr.base_batch_size of the config')
    found.add_argument('--no-persistent-workers', action='store_true',
                       help='start the dataloader workers in every epoch')
    run_flags(found)
    return found


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Write the flags of training into the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        device = get_device()
        if device not in ('cuda', 'cpu'):
            raise ValueError(f'--amp: MMEngine casts on GPUs and CPUs alone, '
                             f'this is {device!r}; leave the flag out.')
        if device == 'cuda':
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        else:
            cfg.optim_wrapper.type = 'Bfloat16OptimWrapper'
            for key in ('loss_scale', 'dtype'):
                cfg.optim_wrapper.pop(key, None)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if cfg.get('auto_scale_lr') is None:
            raise ValueError('--auto-scale-lr: the config has no '
                             'auto_scale_lr=dict(base_batch_size=N); add it.')
        cfg.auto_scale_lr.enable = True
    for name in DATALOADERS:
        loader = cfg.get(name)
        if loader is not None:
            workers = loader.get('num_workers', 0) > 0
            loader.setdefault('persistent_workers', workers)
            if args.no_persistent_workers:
                loader.persistent_workers = False


def show_header(runner: Runner, cfg: Config) -> None:
    """Print what is trained on what.

    Raises:
        ValueError: If there is no whole batch of training images.
    """
    loader = runner.train_dataloader
    if not len(loader):
        raise ValueError(
            f'{len(loader.dataset)} training images give no batch of '
            f'{loader.batch_size or cfg.train_dataloader.batch_size} with '
            'drop_last: set a smaller train_dataloader.batch_size.')
    rows = console.describe_model(runner.model, cfg, trained=True)
    rows['train'] = console.describe_data(loader.dataset,
                                          cfg.train_dataloader.batch_size)
    if cfg.get('val_dataloader') is not None:
        rows['val'] = console.describe_data(runner.val_dataloader.dataset)
    rows['log'] = console.log_file(runner)
    console.header(rows)


def run(args: argparse.Namespace) -> None:
    """Train."""
    cfg = load_config(args)
    apply_flags(cfg, args)
    runner = build_runner(cfg, args)
    show_header(runner, cfg)
    shown = ConsoleHook()
    runner.register_hook(shown)
    runner.train()
    known = runner.message_hub.runtime_info
    metrics, file = shown.metrics, known.get('last_ckpt')
    key = None
    if known.get('best_ckpt') and known.get('best_score') is not None:
        file = known['best_ckpt']
        hook = next(h for h in runner.hooks if hasattr(h, 'key_indicators'))
        key = (hook.key_indicators or [None])[0]
        metrics = {**metrics, key: known['best_score']}
    console.result(
        metrics, key, file,
        f'gap-plugin test {args.config} {console.short(file)}'
        f'{console.typed(args, "work_dir")}' if file else None)


main = command(flags, run)
