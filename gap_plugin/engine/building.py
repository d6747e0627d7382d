"""The model of a config, as a runner builds it; classes of a checkpoint."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

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

from ..messages import shorten
from ..models import TimmFeatureBackbone
from ..timm_network.fit import needed


def build_classifier(cfg: Config, checkpoint: str | None = None,
                     whole: bool = False) -> nn.Module:
    """Build a model with its weights, on the device that there is.

    All that MMEngine's runner does up to there is done, in its order, but
    for what it writes and for wrapping the model.

    Args:
        cfg: The config.
        checkpoint: Weights; None for those that the config loads.
        whole: Whether neck and head need weights, too: for predictions.

    Returns:
        The model. Its ``_dataset_meta`` is what the checkpoint says of its
        data, the names of its classes among it: as MMPretrain's ``get_model``
        leaves it. ``_meta`` is all that it says of itself.

    Raises:
        ValueError: If a checkpoint does not fit.
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
    if checkpoint is None:
        checkpoint = cfg.get('load_from')
    # what is all replaced needs no hub
    model = revert_sync_batchnorm(MODELS.build(
        _unloaded(cfg) if whole and checkpoint else model_config(cfg)))
    model.init_weights()
    model._meta = model._dataset_meta = {}
    if checkpoint is not None:  # an empty name is no file, as for a runner
        load = _load_whole if whole else partial(
            load_checkpoint, map_location='cpu')
        model._meta = load(model, checkpoint).get('meta') or {}
        model._dataset_meta = model._meta.get('dataset_meta') or {}
    return model.to(get_device())


def _load_whole(model: nn.Module, checkpoint: str) -> dict:
    """Load all that a model needs, and give what the checkpoint holds.

    Raises:
        ValueError: If something is missing, or of another shape.
    """
    model.is_init = False  # it is not made to be trained
    if any(isinstance(part, TimmFeatureBackbone) for part in model.modules()):
        return load_checkpoint(model, checkpoint, map_location='cpu')
    wants = needed(model)

    def see(module: nn.Module, incompatible: Any) -> None:
        incompatible.unexpected_keys.clear()
        incompatible.missing_keys[:] = [
            name for name in incompatible.missing_keys if name in wants]

    handle = model.register_load_state_dict_post_hook(see)
    try:
        return load_checkpoint(model, checkpoint, map_location='cpu',
                               strict=True)
    except RuntimeError as error:
        told = [line for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f'checkpoint {str(checkpoint)!r} does not fit the model of the '
            f'config ({told[-1][:200]}): give the checkpoint of this model, '
            'or the changes of the config that it was trained with.'
        ) from None
    finally:
        handle.remove()


def build_unloaded(cfg: Config) -> nn.Module:
    """The model of a config as it was made, on the CPU.

    It is for what a model says of its images: no weights are looked for.
    """
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    return MODELS.build(_unloaded(cfg)).eval()


def _unloaded(cfg: Config) -> ConfigDict:
    """The config of the model, without what loads weights."""
    config = deepcopy(model_config(cfg))
    for part in (config, config.get('backbone') or {}):
        part.update({key: empty for key, empty in (
            ('pretrained', False), ('checkpoint_path', None)) if key in part})
    return config


def model_config(cfg: Config) -> ConfigDict:
    """The config of the model, with the data preprocessor of the run.

    By MMEngine's convention it may stand beside the model: the model's own,
    if it has one, comes first.
    """
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg.model


def check_classes(checkpoint: dict, classes: Sequence[str] | None,
                  name: object, data: str) -> None:
    """Refuse a checkpoint of other classes, or in another order.

    Its outputs would be taken for the classes of the data, in silence.

    Args:
        checkpoint: Loaded. One that names no classes passes.
        classes: Of the data; None if they are not known.
        name: Of the checkpoint, for the message.
        data: Name of the data, likewise.

    Raises:
        ValueError: With the first names that differ.
    """
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    made = [str(c) for c in meta.get('classes') or ()]
    found = [str(c) for c in classes or ()]
    if not made or not found or made == found:
        return
    if sorted(made) == sorted(found):
        told = next(f'class {i} is {a!r} there and {b!r} here' for i, (
            a, b) in enumerate(zip(made, found, strict=True)) if a != b)
    else:
        told = '; '.join(
            f'{shorten(names)} {where}' for names, where in (
                ([c for c in made if c not in found], 'are there alone'),
                ([c for c in found if c not in made], 'are here alone'))
            if names)
    raise ValueError(
        f'checkpoint {str(name)!r} was trained on other classes than those of '
        f'{data!r}, or in another order ({told}): take data of its classes, '
        'and give their dataset classes=[...] as in training.')


def has_seen_labels(meta: dict, classes: Sequence[str] | None) -> bool:
    """Whether the backbone of a checkpoint was trained with these labels.

    A probe leaves the backbone as it is, and says what that was.

    Args:
        meta: What the checkpoint says of itself; empty for none.
        classes: Of the labels.
    """
    if written_by_probe(meta):
        return bool(meta.get('backbone_trained'))
    known = (meta.get('dataset_meta') or {}).get('classes')
    return bool(known) and [*map(str, known)] == [*map(str, classes or ())]


def written_by_probe(meta: dict) -> bool:
    """Whether a checkpoint says that a probe has written it."""
    return 'gap_plugin_version' in meta
