"""The model of a config, outside of a runner."""

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS
from torch import nn


def build_classifier(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """Build a model with its weights, on the device that there is.

    Args:
        cfg: The config.
        checkpoint: Weights; None for those that the config loads.

    Raises:
        ValueError: If a checkpoint does not fit its backbone.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    # what the config leaves to chance is the same in every run
    torch.manual_seed((cfg.get('randomness') or {}).get('seed') or 0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    checkpoint = checkpoint or cfg.get('load_from')
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device())
