"""Train a model from a config, with the flags of MMPretrain's own tool."""

import argparse

from mmengine.config import Config
from mmengine.device import get_device

from common import DATALOADERS, add_shared_flags, build_runner, load_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from a checkpoint; the last one in the work dir if none '
        'is named')
    parser.add_argument('--no-validate', action='store_true',
                        help='no validation during training')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate with the batch size, by '
        'auto_scale_lr.base_batch_size of the config')
    parser.add_argument('--no-persistent-workers', action='store_true',
                        help='start the dataloader workers in every epoch')
    add_shared_flags(parser)
    return parser.parse_args()


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


def main() -> None:
    """Train."""
    args = parse_args()
    cfg = load_config(args)
    apply_flags(cfg, args)
    build_runner(cfg, args).train()


if __name__ == '__main__':
    main()
