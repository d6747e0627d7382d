"""The model of a config, outside of a runner; weights that fit it."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.registry import MODELS
from torch import nn

from ..messages import shorten


def build_classifier(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """Build a model with its weights, on the device that there is.

    Args:
        cfg: The config.
        checkpoint: Weights; None for those that the config loads.

    Raises:
        ValueError: If the backbone needs weights that a checkpoint lacks.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    # what the config leaves to chance is the same in every run
    torch.manual_seed((cfg.get('randomness') or {}).get('seed') or 0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    checkpoint = checkpoint or cfg.get('load_from')
    if checkpoint:
        check_fits(model, checkpoint, 'backbone.')
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device())


def check_fits(model: nn.Module, checkpoint: str, part: str = '') -> None:
    """Refuse a checkpoint that lacks what a model needs.

    MMEngine loads what fits, and leaves the rest as it was made by chance.

    Args:
        model: Built.
        checkpoint: File or address; a folder of shards is left to MMEngine.
        part: What the names of the weights in question begin with.

    Raises:
        ValueError: With counts and first names.
    """
    if Path(checkpoint).is_dir():
        return
    found = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    found = found.get('state_dict', found)
    shapes = {name.removeprefix('module.'): getattr(value, 'shape', None)
              for name, value in found.items()}
    needed = {name: value.shape for name, value in model.state_dict().items()
              if name.startswith(part)
              and not name.endswith('num_batches_tracked')}
    missing = [name for name in needed if name not in shapes]
    others = [name for name, shape in needed.items()
              if shapes.get(name, shape) != shape]
    if missing or others:
        told = [f'{len(names)} weights {what}: {shorten(names)}'
                for names, what in ((missing, 'missing'),
                                    (others, 'of another shape')) if names]
        raise ValueError(
            f'checkpoint {checkpoint!r} does not fit the model of the config '
            f'({"; ".join(told)}): give the checkpoint of this model, or the '
            'changes of the config that it was trained with.')
