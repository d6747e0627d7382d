"""A training that starts from a probe of its own."""

import argparse
import copy
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..features.images import BadImages
from ..probing import probe, save_whole
from ..recipes import on_frozen
from ..version import __version__
from . import console
from . import probe as command
from .building import build_model, extract_splits

EPOCHS = 100


def goes_on(cfg: Config) -> bool:
    """Whether a run is resumed, and there is something to resume."""
    return bool(cfg.get('resume')) and bool(
        cfg.get('load_from') or Path(cfg.work_dir, 'last_checkpoint').exists())


def start_from_probe(cfg: Config, args: argparse.Namespace) -> None:
    """Train neck and head on stored features, and let the run load them.

    The features are those of the network that the run starts from, frozen;
    they are stored in ``probe/`` of the work dir, and computed once. Neck and
    head are trained as those of frozen networks, whatever that of the config.
    They are not new any more, and no longer ahead of the backbone then.

    Args:
        cfg: The config. Its ``load_from`` becomes the probe's checkpoint,
            and ``head_lr_mult`` of its optimiser 1, unless the command line
            sets it.
        args: Flags of the training.

    Raises:
        ValueError: If the model or the data are none for a probe.
    """
    ahead = 'optim_wrapper.paramwise_cfg.head_lr_mult'
    paramwise = (cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}
    if 'head_lr_mult' in paramwise and ahead not in (args.cfg_options or ()):
        paramwise.head_lr_mult = 1.
    if goes_on(cfg):
        console.header(dict(probe='not repeated: the run is resumed'))
        return
    if args.launcher != 'none':
        raise ValueError(
            '--from-probe: a probe is one process; train in one, or run the '
            'command probe with --freeze, and give its checkpoint as '
            '--cfg-options load_from=FILE.')
    folder = Path(cfg.work_dir) / 'probe'
    own = command.flags().parse_args(['--', args.config])
    own.amp, own.force, own.out = args.amp, True, str(folder / 'features')
    splits = ['train'] if cfg.get('val_dataloader') is None else [
        'train', 'val']
    model = build_model(cfg, own)
    try:
        stores = extract_splits(model, cfg, own, splits, probed=True)
    except BadImages as error:  # training has no flag to leave them out
        told = str(error).rpartition('; ')[0]
        raise ValueError(f'{told}; remove or replace them.') from error
    metainfo = stores['train'].description['metainfo']
    linear = _linear(cfg, len(stores['train']))
    result = probe(model, linear, stores['train'], stores.get('val'),
                   epochs=EPOCHS, metainfo=metainfo)
    path = folder / 'linear_probe.pth'
    save_whole(model, path, dict(
        dataset_meta=metainfo, cfg=cfg.pretty_text, epoch=result.epoch,
        gap_plugin_version=__version__))
    told = ''.join(f', {key} {console.number(value)}'
                   for key, value in result.metrics.items())
    console.header(dict(probe=f'{EPOCHS} epochs{told}; the training starts '
                        f'from {console.short(path)}'))
    cfg.load_from, cfg.resume = str(path), False


def _linear(cfg: Config, images: int) -> Config:
    """The config with what a probe is trained by."""
    found = copy.deepcopy(cfg)
    frozen = on_frozen(images, cfg.train_dataloader.batch_size)
    found.optim_wrapper = ConfigDict(
        optimizer=dict(type='AdamW', lr=frozen['lr']),
        constructor='FinetuneOptimWrapperConstructor',
        paramwise_cfg=dict(frozen=frozen))
    found.param_scheduler = [ConfigDict(
        type='CosineAnnealingLR', end=EPOCHS, convert_to_iter_based=True)]
    found.train_cfg = ConfigDict(by_epoch=True, max_epochs=EPOCHS)
    found.auto_scale_lr = found.custom_hooks = None
    return found
