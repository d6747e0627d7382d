"""A model as a folder that timm loads, checked before it has its name.

It is the folder that timm itself writes for the weights hub: ``config.json``
with the names of the classes and the preprocessing, and
``model.safetensors``. ``timm.create_model('local-dir:FOLDER',
pretrained=True)`` gives the network; without ``pretrained=True`` timm gives
random weights, and does not say so.
"""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from mmpretrain.models.heads import MultiLabelClsHead
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

from ..files import put_in_place, remove_whole
from ..locks import alone
from ..messages import first_line, shorten
from ..models import TimmFeatureBackbone
from ..timm_network import DataSettings
from ..visualization.chain import classifier_of
from ..visualization.class_activation import fold
from .timm_classifier import (
    TOLERANCE,
    WholeNetwork,
    difference,
    rounding,
    whole_network,
)
from .timm_settings import check_pixels, preprocessing_of

#: What timm writes, and what a repository has beside it.
_FILES = {'config.json', 'model.safetensors', 'README.md', '.gitattributes'}

#: What timm says of the weights that a network had before.
_FORMER = ('label_names', 'label_descriptions', 'label_offset', 'pool_size',
           'test_input_size', 'test_crop_pct')


@dataclass(frozen=True)
class TimmFolder:
    """What was written, and how far it is from the model.

    Attributes:
        folder: Where it is.
        images: Images of the data that it was compared on.
        network: Largest difference of logits, as a share of the largest.
        pixels: Largest difference of a pixel between timm's preprocessing
            and the config's, 0 to 255; None where they were not compared.
        how: What was set for it to be exact, in words.
        notes: What it does not hold, each in a line.
    """

    folder: Path
    images: int
    network: float
    pixels: float | None
    how: str
    notes: tuple[str, ...]

    def lines(self) -> dict[str, str]:
        """What was done, for people."""
        pixels = '' if self.pixels is None else (
            f'pixels {self.pixels:g} of 255 at most, ')
        images = f' and {self.images} of the data' if self.images else ''
        name = f'local-dir:{self.folder}'
        return {
            **({'set': self.how} if self.how else {}),
            'checked': f'loaded by timm {timm.__version__}, on random images'
                       f'{images}: {pixels}logits {self.network:.1g} '
                       '(relative)',
            'load': f'timm.create_model({name!r}, pretrained=True); without '
                    'pretrained=True timm gives random weights',
            **({'note': '; '.join(self.notes)} if self.notes else {})}


def export_timm(model: nn.Module, folder: str | Path, dataset: Any = None, *,
                classes: Sequence[str] | None = None, count: int = 32,
                force: bool = False) -> TimmFolder:
    """Write a model as a folder that ``timm.create_model`` loads.

    Neck and head are folded into timm's classifier, in float64. Then timm
    loads the folder, and has to give the same logits. The model stays as it
    is.

    Args:
        model: An ``ImageClassifier`` over a :class:`TimmFeatureBackbone`.
        folder: Where it is to be.
        dataset: Images to check it on, with its test pipeline, which the
            preprocessing is read from; None for random images and the
            network's own preprocessing.
        classes: Names of the classes; None if they are not known.
        count: Number of images of the dataset.
        force: Whether a folder of timm that is there is replaced.

    Returns:
        How far it is from the model: :data:`~.timm_classifier.TOLERANCE` at
        most, and what float32 rounds off.

    Raises:
        ValueError: If neck and head are not affine, timm has other layers
            there, or a setting cannot be carried; there is no folder then.
        FileExistsError: If there is something else of that name.
        OSError: If it cannot be written.
    """
    folder = Path(folder)
    check_place(folder, force)
    model, weight, bias = _affine(model)
    if classes is not None and len(classes) != len(bias):
        raise ValueError(f'there are {len(classes)} names of classes, and '
                         f'the model has {len(bias)}: give it those of its '
                         'training.')
    samples, settings, notes = preprocessing_of(model, dataset, count)
    if classes is None:
        notes.append('the names of the classes are not known')
    if isinstance(model.head, MultiLabelClsHead):
        notes.append('a score is the sigmoid of a logit, not the softmax')
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(2, model.backbone.in_channels, *settings.size,
                         generator=chance)
    whole = whole_network(model.backbone, len(bias), images)
    whole.classify(weight, bias)
    given = [images, *([] if samples is None else samples.inputs.split(8))]
    with torch.no_grad():
        expected = torch.cat([model(x, mode='tensor') for x in given])
        limit = TOLERANCE + max(
            rounding(model.backbone(x)[-1], weight, bias)
            for x in given) / float(expected.abs().max())
    place = folder.resolve()
    partial = place.with_name(f'{place.name}.partial')
    with alone(place.with_name(f'.{place.name}.lock'), folder):
        remove_whole(partial)
        try:
            _save(whole, settings, classes, partial)
            found = _load(partial)
            with torch.no_grad():
                off = difference(torch.cat([found(x) for x in given]),
                                 expected)
            if not off <= limit:
                raise ValueError(
                    f'timm gives logits that differ by {off:.3g} of the '
                    f'largest one, {limit:.3g} at most: there is no '
                    'folder.')
            pixels = check_pixels(found, samples)
            put_in_place(partial, place)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f'cannot write {str(folder)!r} ({first_line(error)[:160]}): '
                'free space, or name a folder where you may write; what was '
                'there is whole.') from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return TimmFolder(folder, len(expected) - len(images), off, pixels,
                      whole.how, tuple(notes))


def check_place(folder: Path, force: bool) -> None:
    """Refuse a place where something else is, ahead of any work.

    Raises:
        FileExistsError: If there is something that is not to be replaced.
        FileNotFoundError: If there is no folder to put it in.
    """
    if not folder.resolve().parent.is_dir():
        raise FileNotFoundError(f'there is no folder {str(folder.parent)!r} '
                                f'for {folder.name!r}: make it first.')
    if not folder.exists():
        return
    if not force:
        raise FileExistsError(f'{str(folder)!r} exists: name another one, '
                              'or use force=True.')
    if not folder.is_dir():
        raise FileExistsError(f'{str(folder)!r} is a file: name a folder.')
    others = [each.name for each in folder.iterdir()
              if each.name not in _FILES]
    if others:
        raise FileExistsError(
            f'{str(folder)!r} has {shorten(sorted(others))}, which is not '
            "timm's, and stays: name another folder.")


def _affine(model: nn.Module
            ) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A copy of the model to compute with, its neck and head folded.

    Raises:
        ValueError: If timm has no such network or classifier.
    """
    try:
        model = copy.deepcopy(classifier_of(model)).cpu().float().eval()
    except ValueError as error:
        raise ValueError(f'{_cause(error)}: timm has no such model.'
                         ) from None
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, TimmFeatureBackbone):
        raise ValueError(
            f'the backbone is {type(backbone).__name__}, and a network of '
            'timm is a TimmFeatureBackbone: checkpoints of a TIMMBackbone '
            'load into one.')
    for key, value in backbone.stored.spec.timm_kwargs.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(
                f'timm_kwargs has {key}={value!r}, which config.json cannot '
                'hold: give it as a text or a number.') from None
    try:
        found = fold(model, vectors=True)
    except ValueError as error:
        raise ValueError('neck and head are not one linear layer on the '
                         f'pooled map: {_cause(error)}.') from None
    return model, found.weight, found.bias


def _cause(error: ValueError) -> str:
    """What is wrong, without what maps would need."""
    return first_line(error).partition(':')[0]


def _save(whole: WholeNetwork, settings: DataSettings,
          classes: Sequence[str] | None, folder: Path) -> None:
    """Let timm write the folder."""
    network = whole.network
    size = (whole.spec.in_channels, *settings.size)
    about = {key: value for key, value in network.pretrained_cfg.items()
             if key not in _FORMER}
    about.update(
        input_size=size, mean=settings.mean, std=settings.std,
        interpolation=settings.interpolation, crop_pct=settings.crop_pct,
        crop_mode=settings.crop_mode, custom_load=False)
    network.pretrained_cfg = about
    # safetensors holds a tensor of two names twice
    network._register_state_dict_hook(
        lambda _, tensors, *__: tensors.update(
            (name, value.clone()) for name, value in tensors.items()))
    arguments = dict(whole.spec.timm_kwargs)
    if not hasattr(network, '_model_args'):  # older timm keeps none
        if whole.spec.in_channels != 3:
            arguments['in_chans'] = whole.spec.in_channels
        if whole.spec.img_size and about.get('fixed_input_size'):
            arguments['img_size'] = whole.spec.img_size
    names = {} if classes is None else dict(
        label_names=[str(name) for name in classes])
    save_for_hf(network, str(folder), model_config=names,
                model_args=arguments, safe_serialization=True)
    # safetensors lets nobody else read it
    (folder / 'model.safetensors').chmod(
        (folder / 'config.json').stat().st_mode)


def _load(folder: Path) -> nn.Module:
    """Let timm load it.

    Raises:
        ValueError: If it cannot: a setting is not in the folder.
    """
    try:
        return timm.create_model(f'local-dir:{folder}',
                                 pretrained=True).eval()
    except (AssertionError, KeyError, RuntimeError, TypeError,
            ValueError) as error:
        raise ValueError(
            f'timm {timm.__version__} cannot load what it has written '
            f'({first_line(error)[:160]}): there is no folder.') from None
