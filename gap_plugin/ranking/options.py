"""What is compared, and how: names, settings, one config for each network."""

import copy
import fnmatch
import warnings
from dataclasses import dataclass
from pathlib import Path

import timm
from mmengine.config import Config

from ..config_writer import NewConfig, write_config
from ..features.images import loader_config
from ..probing import grid
from ..probing.choice import Score
from ..timm_network import check_name

SPLITS = ('train', 'val')


@dataclass(frozen=True)
class RankingOptions:
    """How backbones are compared.

    Args:
        out: Folder for all that is written.
        config: Whose data, neck, head and schedule are used; None for those
            of ``data_root``.
        data_root: Folder of images, as
            :class:`~gap_plugin.config_writer.NewConfig` takes it.
        no_pretrained: Whether weights are random.
        weights: Folder of ``<model>.safetensors``, ``.pth`` or ``.bin``, in
            place of the weights of the hub.
        epochs: Of each probe.
        lr: Learning rates; None for that of the config.
        weight_decay: Weight decays, likewise.
        engine: What runs the networks over the images, one of
            :data:`~gap_plugin.features.ENGINES`.
        amp: Whether the pass runs under autocast.
        skip_bad: Whether unreadable images are left out.
        timing_batch: Images a batch when images/s are measured.
        keep_features: Whether stores stay on the disk.
        force: Whether what is there is measured again.
        cfg_options: Changes of the config.

    Raises:
        ValueError: If a value is out of its range.
    """

    out: Path
    config: str | None = None
    data_root: Path | None = None
    no_pretrained: bool = False
    weights: Path | None = None
    epochs: int = 50
    lr: list[float] | None = None
    weight_decay: list[float] | None = None
    engine: str = 'auto'
    amp: bool = False
    skip_bad: bool = False
    timing_batch: int = 32
    keep_features: bool = False
    force: bool = False
    cfg_options: dict | None = None

    def __post_init__(self) -> None:
        for name in ('epochs', 'timing_batch'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name}={getattr(self, name)} must be 1 at '
                                 'least.')
        grid(self.lr, self.weight_decay)  # refuses what is out of range


def chosen_models(patterns: list[str], pretrained: bool) -> list[str]:
    """Names of timm that patterns fit, in order, each once.

    Args:
        patterns: Names, ``hf-hub:`` and ``local-dir:`` too, or patterns.
        pretrained: Whether patterns are of networks with weights only.

    Raises:
        ValueError: If one fits nothing.
    """
    weighted = {name.split('.')[0]
                for name in timm.list_models(pretrained=True)}
    found: dict[str, None] = {}
    for pattern in patterns:
        if any(c in pattern for c in '*?['):
            names = [name for name in fnmatch.filter(
                timm.list_models(), pattern)
                if name in weighted or not pretrained]
            if not names:
                raise ValueError(
                    f'models: {pattern!r} fits no network of timm'
                    f'{" with weights" if pretrained else ""}: see '
                    'timm.list_models().')
        else:
            check_name(pattern)
            names = [pattern]
        found.update(dict.fromkeys(names))
    return list(found)


def base_config(options: RankingOptions) -> Config:
    """The config that all networks share.

    Raises:
        ValueError: If it cannot be made, or networks not ranked by it.
    """
    if options.config is None:
        request = NewConfig('resnet18', options.data_root, recipe='linear',
                            out=options.out / 'config.py', force=True)
        write_config(request, read=False)
    cfg = Config.fromfile(str(options.config or request.path))
    if options.cfg_options:
        cfg.merge_from_dict(options.cfg_options)
    if cfg.model.backbone.type != 'TimmFeatureBackbone':
        raise ValueError(f'the backbone of {options.config} is '
                         f'{cfg.model.backbone.type}: use a config of '
                         'TimmFeatureBackbone, whose model_name changes.')
    if Score(cfg).less:
        raise ValueError('networks are ranked by the most, but less is '
                         'better by the checkpoint hook: give save_best a '
                         'metric such as accuracy/top1, and no rule.')
    cfg.pop('load_from', None)
    for key in ('model_name', 'checkpoint_path', 'checkpoint_key',
                'pretrained', 'init_cfg'):
        cfg.model.backbone.pop(key, None)
    for given in (cfg.get('data_preprocessor'),
                  cfg.model.get('data_preprocessor')):
        for key in ('mean', 'std'):  # each network has its own
            (given or {}).pop(key, None)
    for split in SPLITS:
        cfg[f'{split}_dataloader'].setdefault(
            'collate_fn', dict(type='default_collate'))
    if 'TimmTestTransform' not in str(loader_config(cfg, 'val')):
        warnings.warn('the test pipeline has no TimmTestTransform: it is the '
                      'same for all networks.', stacklevel=2)
    return cfg


def weights_file(name: str, folder: Path) -> Path:
    """A network's file of weights in a folder.

    Raises:
        ValueError: If there is none.
    """
    files = [folder / f'{name}{suffix}'
             for suffix in ('.safetensors', '.pth', '.bin')]
    there = [path for path in files if path.is_file()]
    if not there:
        raise ValueError(f'{str(folder)!r} has no {files[0].name} and no '
                         f'{files[1].name}.')
    return there[0]


def config_of(name: str, base: Config, options: RankingOptions) -> Config:
    """The config of one network: frozen, with its weights.

    Raises:
        ValueError: If there is no file of weights.
    """
    cfg = copy.deepcopy(base)
    cfg.model.backbone.update(
        model_name=name, frozen_stages='all',
        pretrained=not (options.no_pretrained or options.weights))
    if options.weights:
        cfg.model.backbone.checkpoint_path = str(
            weights_file(name, options.weights))
    return cfg
