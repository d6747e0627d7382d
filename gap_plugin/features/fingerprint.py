"""What stands for all that makes the features of a split."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from ..engine.building import model_config
from ..host import versions
from ..version import __version__
from .fixed_part import FixedPart
from .images import Samples, described

#: Arguments of a backbone that say where its weights come from, which stand
#: in the fingerprint themselves, or what is trained of it.
_ORIGIN = ('pretrained', 'checkpoint_path', 'checkpoint_key', 'init_cfg',
           'frozen_stages', 'norm_eval', 'with_cp', 'channels_last')
#: Arguments of a dataset that say what its classes are called, and where its
#: files are.
_NAMES = ('classes', 'metainfo')
_PLACE = ('data_root', 'data_prefix', 'ann_file')


class Fingerprint:
    """What stands for all that makes the features of a split.

    Args:
        part: What makes them.
        weights: What :func:`weights_of` gives for it.
        cfg: Of the model.
        loader: The dataloader's config.
        samples: Of the split.
        **others: Fields besides.

    Attributes:
        samples (Samples): As given.
        images (list): For each of them, its name and state, as
            :func:`~.images.described` has it.
    """

    def __init__(self, part: FixedPart, weights: str, cfg: Config,
                 loader: dict, samples: Samples, **others: Any) -> None:
        self.samples = samples
        root, self.images = described(samples.names, samples.files)
        source = getattr(part.backbone, 'data_source', None)
        self._fields = dict(
            weights=weights,
            backbone=hash_of(cfg.model.get('backbone')),
            neck=part.necks,
            preprocessor=hash_of([model_config(cfg).get('data_preprocessor'), {
                name: value.tolist() for name, value in
                part.data_preprocessor.named_buffers()}]),
            # the transforms of ours follow the network's description
            pipeline=hash_of([loader['dataset'], source]),
            # what these say of features, and not of the place of files
            network=hash_of(_without(cfg.model.get('backbone'), _ORIGIN)),
            transforms=hash_of([_without(loader['dataset'], _NAMES + (
                _PLACE if root else ())), source]),
            root=root, batch_size=loader['batch_size'],
            versions=dict(versions(), gap_plugin=__version__), **others)

    def of(self, chosen: Collection[int], **others: Any) -> dict[str, Any]:
        """The fingerprint of a store of some rows.

        Args:
            chosen: These rows.
            **others: Fields besides.
        """
        labels = self.samples.labels
        known = (None if labels is None else
                 labels[np.array(chosen, int)].tolist())
        return dict(
            self._fields, rows=len(chosen),
            data=hash_of([[self.samples.names[i] for i in chosen], known]),
            images=hash_of([[self.images[i] for i in chosen], known]),
            **others)


def weights_of(module: nn.Module) -> str:
    """What stands for all weights and statistics of a module."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1)
                      .view(torch.uint8).numpy())
    return digest.hexdigest()


def _without(config: Any, keys: Collection[str]) -> Any:
    """A config without some keys, at any depth."""
    if isinstance(config, dict):
        return {key: _without(value, keys) for key, value in config.items()
                if key not in keys}
    if isinstance(config, (list, tuple)):
        return [_without(value, keys) for value in config]
    return config


def hash_of(value: Any) -> str:
    """What stands for a value that JSON has, or that can be printed."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
