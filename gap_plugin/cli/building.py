"""From flags to a config, a runner, a model, stores."""

import argparse
import codecs
import difflib
import inspect
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from ..config_writer import inert
from ..engine import BindPipelineHook
from ..engine.building import build_classifier
from ..features import Extraction, FeatureStore
from ..features.images import check_probed
from ..files import read_text
from ..host import init_cpu_group
from ..locks import alone
from ..messages import shorten
from ..shipped import shipped
from ..stock.old_names import numpy_in1d
from . import console

#: Keys that runners read although they are no arguments of theirs.
_RUNNER = ('model_wrapper_cfg', 'find_unused_parameters', 'runner_type',
           'auto_scale_lr', 'compile', 'sync_bn')

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def config_path(name: str) -> Path:
    """A config: a file, or one that comes with the package.

    Args:
        name: A path, or ``folder/name`` of a shipped config, with or without
            ``.py``.

    Raises:
        FileNotFoundError: If there is neither; with the nearest names.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(f'config {name!r} is a folder: name one of '
                                'its files.')
    folder = shipped('configs')
    inside = folder / name.removesuffix('.py')
    inside = inside.with_name(f'{inside.name}.py')
    if not path.is_absolute() and inside.is_file():
        return inside
    known = [p.relative_to(folder).with_suffix('').as_posix()
             for p in sorted(folder.rglob('*.py'))
             if not p.relative_to(folder).parts[0].startswith('_')]
    near = difflib.get_close_matches(
        name.removesuffix('.py').removeprefix('configs/'), known, 3, .5)
    raise FileNotFoundError(
        f'config {name!r} is not a file, and this package has none of that '
        'name: '
        + (f'did you mean {", ".join(near)}?' if near else
           f'there are {", ".join(known[:5])}, ...'))


class _Config(Config):
    """A config whose text, in a work dir or checkpoint, is read as it is."""

    @property
    def pretty_text(self) -> str:
        """As MMEngine writes it, with nothing for MMEngine to replace."""
        return inert(super().pretty_text)


def _cores() -> int:
    """Cores that one process of a run has."""
    cores = (len(os.sched_getaffinity(0))
             if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
    return max(cores // int(os.environ.get('LOCAL_WORLD_SIZE', '1')), 1)


def read_config(name: str) -> Config:
    """Read a config of :func:`config_path`.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If MMEngine cannot decode it, or would read a byte order
            mark as code.
    """
    path = config_path(name)
    if path.suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise ValueError(f'config {str(path)!r} must end in .py, .json, '
                         '.yaml or .yml.')
    read_text(path)
    if path.read_bytes().startswith(codecs.BOM_UTF8):
        raise ValueError(f'config {str(path)!r} begins with a byte order '
                         'mark: save it as UTF-8 without one.')
    return Config.fromfile(str(path))


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, with the shared flags and ``--cfg-options``.

    Returns:
        The config, with a ``work_dir``.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If an option changes nothing.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = _Config()
    cfg.__setstate__(read_config(args.config).__getstate__())
    if cfg.get('model') is None:
        raise ValueError(f'config {args.config!r} has no model: name a '
                         'config that builds one.')
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    cores, asked = _cores(), 0
    for name in DATALOADERS:
        loader = cfg.get(name)
        if loader is None:
            continue
        loader.setdefault('pin_memory', get_device() == 'cuda')
        loader.setdefault('collate_fn', dict(type='default_collate'))
        if args.no_pin_memory:
            loader.pin_memory = False
        if loader.get('num_workers', 0) > cores:
            asked = max(asked, loader.num_workers)
            loader.num_workers = cores
    if asked:
        console.header(dict(workers=f'{cores}, one a core; the config asks '
                            f'for {asked}'))
    apply_options(cfg, args.cfg_options)
    return cfg


def one_run(cfg: Config, name: str) -> AbstractContextManager[None]:
    """Keep other runs of a command off a work dir.

    Args:
        cfg: The config; of several processes of a run, the first one is it.
        name: Of the command.
    """
    folder = Path(cfg.work_dir)
    return (alone(folder / f'.{name}.lock', folder) if console.first()
            else nullcontext())


def apply_options(cfg: Config, options: dict | None) -> None:
    """Apply ``--cfg-options``.

    Raises:
        ValueError: If a key has no place in the config.
    """
    known = {*cfg, 'tta_model', 'tta_pipeline', *_RUNNER,
             *inspect.signature(Runner).parameters,
             *inspect.signature(FlexibleRunner).parameters}
    for key in options or ():
        first = key.split('.')[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, 1)
            raise ValueError(
                f'--cfg-options {key}: the config has no {first!r}'
                + (f', did you mean {near[0]!r}?' if near else
                   f'; it has {shorten(cfg)}.'))
    cfg.merge_from_dict(options or {})
    for name in DATALOADERS:
        loader = cfg.get(name)
        if loader is not None and not loader.get('num_workers'):
            loader.persistent_workers = False  # there is none to stay


def check_checkpoint(name: str) -> None:
    """Refuse a checkpoint that is not there, ahead of building a model.

    Raises:
        ValueError: With its name.
    """
    if '://' not in name and not Path(name).exists():
        raise ValueError(f'checkpoint {name!r} is not there: name one that '
                         'training has written.')


def build_runner(cfg: Config, args: argparse.Namespace) -> Runner:
    """Build the runner that a config asks for.

    On a machine without a GPU, torchrun's processes talk by gloo.
    """
    numpy_in1d()  # for MMPretrain's metrics of retrieval
    if init_cpu_group(args.launcher):
        wrapper = cfg.get('model_wrapper_cfg') or dict(
            type='MMDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False))
        wrapper.setdefault('device_ids', None)
        cfg.model_wrapper_cfg = wrapper
    runner = (RUNNERS.build(cfg) if 'runner_type' in cfg else
              Runner.from_cfg(cfg))
    if not any(isinstance(hook, BindPipelineHook) for hook in runner.hooks):
        runner.register_hook(BindPipelineHook())
    return runner


def extract_splits(model: nn.Module, cfg: Config, args: argparse.Namespace,
                   splits: Iterable[str],
                   probed: bool = False) -> dict[str, FeatureStore]:
    """Stores of several splits, as the flags say.

    Args:
        model: The classifier.
        cfg: Its config.
        args: Flags of :func:`~.flags.store_flags`.
        splits: Which ones; ``view_0`` and so on for augmented passes of the
            training split come along.
        probed: Whether a probe is to be trained on them: what spoils a
            training is looked for ahead of the pass.

    Raises:
        ValueError: If something does not fit.
    """
    if args.views < 0:
        raise ValueError(f'views={args.views} must be 0 or more.')
    out = Path(args.out or Path(cfg.work_dir) / 'features')
    passes = {split: (split, None) for split in splits}
    passes |= {f'view_{i}': ('train', i) for i in range(args.views)}
    console.header(dict(
        console.describe_model(model, cfg), stores=str(out)))
    count = None
    if probed:
        found = check_probed(cfg, splits)
        count = sum(len(found[split].names) for name, (split, _) in
                    passes.items() if args.force or not (out / name).exists())
    extraction = Extraction(
        model, cfg, engine=args.engine, count=count, dtype=args.dtype,
        amp=args.amp, skip_bad=args.skip_bad, force=args.force)
    stores = {}
    known = {name for name in passes if (out / name).exists()}
    if known < set(passes):
        console.header({'pass': 'over the images of ' + ', '.join(
            name for name in passes if name not in known)})
    for name, (split, view) in passes.items():
        stores[name] = extraction(split, out / name, view)
        rows, width = stores[name].features.shape
        engine = stores[name].fingerprint.get('engine')
        console.header({name: f'{rows} x {width} '
                        f'{stores[name].features.dtype}'
                        + (f' by {engine}' if engine else '')
                        + (', from an earlier pass' if name in known
                           and not args.force else '')})
    return stores


def build_model(cfg: Config, args: argparse.Namespace,
                whole: bool = False) -> nn.Module:
    """Build the model of a config, with its weights, outside of a runner.

    Args:
        cfg: The config.
        args: Flags, ``checkpoint`` and ``launcher`` among them.
        whole: Whether neck and head need weights, too.
    """
    if args.launcher != 'none' and not init_cpu_group(args.launcher):
        init_dist(args.launcher, **(cfg.get('env_cfg') or {}).get(
            'dist_cfg', {}))
    return build_classifier(cfg, args.checkpoint, whole)
