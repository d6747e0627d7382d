"""Evaluate a checkpoint, with the flags of MMPretrain's own tool."""

import argparse
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from ..datasets.checks import check_folder
from ..engine.building import model_config
from ..engine.checkpoint_hook import ClassNamesHook
from ..files import written_whole
from . import console
from .building import build_runner, check_checkpoint, load_config
from .command import command
from .console_hook import ConsoleHook
from .flags import config_flag, parser, run_flags


def flags() -> argparse.ArgumentParser:
    """The command line."""
    found = parser(__doc__)
    config_flag(found)
    found.add_argument('checkpoint', help='checkpoint file')
    found.add_argument('--out', help='file for the results')
    found.add_argument('--out-item', choices=['metrics', 'pred'],
                       help='what goes into --out; predictions by default')
    found.add_argument('--tta', action='store_true',
                       help='test-time augmentation: the tta_model and '
                       'tta_pipeline of the config, else flipping')
    found.add_argument('--show-dir', help='folder for pictures of the '
                       'predictions')
    found.add_argument('--show', action='store_true',
                       help='show the predictions in a window')
    found.add_argument('--interval', type=int, default=1,
                       help='draw every so many samples')
    found.add_argument('--wait-time', type=float, default=2,
                       help='seconds to show a window')
    run_flags(found)
    return found


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Write the flags of testing into the config.

    Raises:
        ValueError: If they contradict each other, or a file or folder that
            they name is not there.
    """
    if args.out_item and not args.out:
        raise ValueError('--out-item needs --out FILE.')
    if cfg.get('test_dataloader') is None or cfg.get('test_cfg') is None:
        raise ValueError('the config has no test_dataloader or no test_cfg: '
                         'add them, for there is nothing to test on.')
    formats = (('json', 'yaml', 'yml', 'pkl', 'pickle')
               if args.out_item == 'metrics' else ('pkl', 'pickle'))
    if args.out and Path(args.out).suffix[1:] not in formats:
        raise ValueError(f'--out {args.out!r} must end in one of '
                         f'{", ".join(formats)}.')
    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise ValueError(f'--out {args.out!r}: there is no folder '
                         f'{str(Path(args.out).parent)!r}; make it first.')
    check_checkpoint(args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        cfg.default_hooks.setdefault(
            'visualization', dict(type='VisualizationHook'))
        # not what setdefault gives: the config keeps a copy
        cfg.default_hooks.visualization.update(
            enable=True, show=args.show, out_dir=args.show_dir,
            interval=args.interval, wait_time=args.wait_time)
    if args.tta:
        _augment(cfg)


def _augment(cfg: Config) -> None:
    """Put the model behind test-time augmentation."""
    dataset = cfg.test_dataloader.dataset
    if 'tta_pipeline' not in cfg:
        *transforms, pack = deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=p) for p in (1., 0.)]
        cfg.tta_pipeline = transforms + [
            dict(type='TestTimeAug', transforms=[flips, [pack]])
        ]
    wrapper = cfg.get('tta_model', dict(type='mmpretrain.AverageClsScoreTTA'))
    cfg.model = ConfigDict(**wrapper, module=model_config(cfg))
    cfg.pop('data_preprocessor', None)  # it would replace the model's own
    dataset.pipeline = cfg.tta_pipeline


def run(args: argparse.Namespace) -> None:
    """Test."""
    cfg = load_config(args)
    apply_flags(cfg, args)
    runner = build_runner(cfg, args)

    def about(runner: Runner) -> dict[str, str]:
        model = runner.model
        while hasattr(model, 'module'):  # test-time augmentation, DDP
            model = model.module
        check_folder(runner.test_dataloader.dataset, 'test')
        return dict(
            console.describe_model(model, cfg),
            test=console.describe_data(runner.test_dataloader.dataset),
            log=console.log_file(runner))

    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(
            DumpResults(out_file_path=args.out))
    runner.register_hook(ConsoleHook(about))
    runner.register_hook(ClassNamesHook())
    metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        with written_whole(args.out) as path:
            mmengine.dump(metrics, path, Path(args.out).suffix[1:])
    console.result(metrics, None, args.out or args.show_dir)


main = command(flags, run)
