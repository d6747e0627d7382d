"""Evaluate a checkpoint, with the flags of MMPretrain's own tool."""

import argparse
from copy import deepcopy

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from common import add_shared_flags, build_runner, load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='file for the results')
    parser.add_argument('--out-item', choices=['metrics', 'pred'],
                        help='what goes into --out; predictions by default')
    parser.add_argument('--tta', action='store_true',
                        help='test-time augmentation: the tta_model and '
                        'tta_pipeline of the config, else flipping')
    parser.add_argument('--show-dir', help='folder for pictures of the '
                        'predictions')
    parser.add_argument('--show', action='store_true',
                        help='show the predictions in a window')
    parser.add_argument('--interval', type=int, default=1,
                        help='draw every so many samples')
    parser.add_argument('--wait-time', type=float, default=2,
                        help='seconds to show a window')
    add_shared_flags(parser)
    args = parser.parse_args()
    if args.out_item and not args.out:
        parser.error('--out-item needs --out FILE')
    return args


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Write the flags of testing into the config."""
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
    cfg.model = ConfigDict(**wrapper, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    """Test."""
    args = parse_args()
    cfg = load_config(args)
    apply_flags(cfg, args)
    runner = build_runner(cfg, args)
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(
            DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
