"""The model of a config, as a runner builds it."""

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint, set_random_seed
from mmengine.utils import import_modules_from_strings
from mmengine.utils.dl_utils import set_multi_processing
from mmpretrain.registry import MODELS
from torch import nn


def build_classifier(cfg: Config, checkpoint: str | None = None) -> nn.Module:
    """Build a model with its weights, on the device that there is.

    All that MMEngine's runner does up to there is done, in its order, but
    for what it writes and for wrapping the model.

    Args:
        cfg: The config.
        checkpoint: Weights; None for those that the config loads.

    Raises:
        ValueError: If a checkpoint does not fit its backbone.
    """
    if cfg.get('custom_imports'):  # a process that was given the config
        import_modules_from_strings(**cfg.custom_imports)
    env, chance = cfg.get('env_cfg') or {}, cfg.get('randomness') or {}
    if env.get('cudnn_benchmark'):
        torch.backends.cudnn.benchmark = True
    set_multi_processing(**env.get('mp_cfg') or {})
    # what the config leaves to chance is the same in every run
    set_random_seed(chance.get('seed') or 0,
                    chance.get('deterministic', False))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model = revert_sync_batchnorm(MODELS.build(model_config(cfg)))
    model.init_weights()
    checkpoint = checkpoint or cfg.get('load_from')
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device())


def model_config(cfg: Config) -> ConfigDict:
    """The config of the model, with the data preprocessor of the run.

    By MMEngine's convention it may stand beside the model: the model's own,
    if it has one, comes first.
    """
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg.model
