"""Train a model from a config, with the flags of MMPretrain's own tool."""

import argparse
import shlex
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import IterBasedTrainLoop, Runner

from ..datasets.checks import check_datasets, check_folder
from ..engine.checkpoint_hook import (
    ClassNamesHook,
    check_batches,
    clear_partial,
)
from ..engine.device import half_precision
from . import console
from .building import DATALOADERS, build_runner, load_config, one_run
from .command import command
from .console_hook import ConsoleHook
from .first_probe import start_from_probe
from .flags import config_flag, parser, run_flags


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from a checkpoint; the last one in the work dir if none '
        'is named')
    found.add_argument('--from-probe', action='store_true',
                       help='train neck and head first, on features of the '
                       'frozen network, and start from them')
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


def check_training(runner: Runner) -> None:
    """Refuse a config that cannot train.

    Raises:
        ValueError: If it lacks what training needs, or images for a batch.
    """
    loop = runner.train_loop
    if loop is None:
        raise ValueError('the config has no train_cfg, train_dataloader and '
                         'optim_wrapper: name a config that trains.')
    asked = 'max_iters' if isinstance(
        loop, IterBasedTrainLoop) else 'max_epochs'
    if getattr(loop, asked, 1) < 1:
        raise ValueError(f'train_cfg trains nothing: its {asked} is '
                         f'{getattr(loop, asked)}, set it to 1 at least.')
    check_batches(runner)


def run(args: argparse.Namespace) -> None:
    """Train."""
    cfg = load_config(args)
    apply_flags(cfg, args)
    with one_run(cfg, 'train'):
        _train(cfg, args)


def _train(cfg: Config, args: argparse.Namespace) -> None:
    """Train, in a work dir of its own."""
    folder = Path(cfg.work_dir)
    if console.first() and folder.is_dir():
        clear_partial(folder)
    if args.from_probe:
        start_from_probe(cfg, args)
    runner = build_runner(cfg, args)
    check_training(runner)

    def about(runner: Runner) -> dict[str, str]:
        datasets = dict(train=runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            datasets['val'] = runner.val_dataloader.dataset
        for split, dataset in datasets.items():
            check_folder(dataset, split)
        check_datasets(datasets)
        rows = console.describe_model(runner.model, cfg, trained=True)
        rows['train'] = console.describe_data(
            runner.train_dataloader.dataset,
            cfg.train_dataloader.get('batch_size'))
        if runner.val_loop is not None:
            rows['val'] = console.describe_data(runner.val_dataloader.dataset)
        faster = half_precision()
        plain = (cfg.optim_wrapper or {}).get('type', 'OptimWrapper')
        if faster and plain == 'OptimWrapper':
            rows['hint'] = f'--amp is faster with most networks: '\
                f'{faster}'
        if args.resume:
            rows['resume'] = 'the last checkpoint of the work dir, if there ' \
                'is one' if args.resume == 'auto' else args.resume
        rows['log'] = console.log_file(runner)
        return rows

    shown = ConsoleHook(about)
    runner.register_hook(shown)
    runner.register_hook(ClassNamesHook())
    runner.train()
    known = runner.message_hub.runtime_info
    file = known.get('best_ckpt') or known.get('last_ckpt')
    key, metrics = _chosen_by(runner), shown.best or shown.metrics
    if known.get('best_ckpt') and not shown.best and key in metrics:
        metrics = {key: known['best_score']}  # of the run that was resumed
    console.result(
        metrics, key, file,
        f'gap-plugin test {shlex.quote(args.config)} '
        f'{shlex.quote(console.short(file))}'
        f'{console.typed(args, "work_dir")}' if file else None)
    if shown.not_finite:
        raise ValueError(
            f'the loss was NaN or infinite, first in {shown.not_finite[0]}, '
            'and the checkpoints since then hold what came of it: lower '
            'optim_wrapper.optimizer.lr (of a frozen backbone, '
            'paramwise_cfg.frozen.lr), set optim_wrapper.clip_grad='
            'dict(max_norm=1.), or train without --amp.')


def _chosen_by(runner: Runner) -> str | None:
    """The metric that the best checkpoint is chosen by."""
    for hook in runner.hooks:
        for key in getattr(hook, 'key_indicators', None) or ():
            return key
    return None


main = command(flags, run)
