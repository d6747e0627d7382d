"""A file that was exported, as something that scores images."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmpretrain.models.heads import MultiLabelClsHead
from torch import nn

from ..engine.building import build_unloaded
from ..export import About, open_onnx, read_metadata
from ..export.about import network_name
from ..export.pipeline import statistics, takes_rgb
from ..features.store import digest
from .images import Images, Photos, Samples, test_loader
from .scores import class_names, softmax, usual_of


class ExportedClassifier:
    """An ONNX file of :func:`~gap_plugin.export.export_onnx`.

    Args:
        path: The file.
        cfg: The config that it was exported from. One that takes photos and
            gives probabilities needs none.

    Attributes:
        about: What the file says of itself.
        classes (list[str] | None): Names of the classes.
        number (int): Of the classes, known after :meth:`open`.

    Raises:
        ImportError: If onnxruntime is not installed.
        OSError: If there is no such file.
        ValueError: If it is of another kind or another config, or needs one.
    """

    def __init__(self, path: str | os.PathLike,
                 cfg: Config | None = None) -> None:
        self.path, self.cfg, self.number = Path(path), cfg, 0
        self._session = open_onnx(path, torch.get_num_threads())
        self.about = _about(read_metadata(self._session), self.path)
        self.photos = self.about.input == 'photos'
        if cfg is None and (not self.photos
                            or self.about.scores == 'logits'):
            needed = ('gives logits, and not probabilities' if self.photos
                      else 'takes images that are preprocessed')
            raise ValueError(f'{str(path)!r} {needed}: name the config that '
                             'it was exported from ahead of it.')
        self.model = None if cfg is None else build_unloaded(cfg)
        if self.model is not None:
            self._check_network(network_name(self.model))
        if self.model is not None and not self.photos:
            self._check_normalisation(self.model.data_preprocessor)
        self.classes = self.about.classes
        if self.classes is None and cfg is not None:
            self.classes = class_names(self.model, cfg)

    def _check_network(self, name: str) -> None:
        if name != self.about.network:
            raise ValueError(
                f'{str(self.path)!r} is of {self.about.network!r}, and the '
                f'config builds {name!r}: name the config that it was '
                'exported from.')

    def _check_normalisation(self, preprocessor: nn.Module) -> None:
        found = (*statistics(preprocessor, self.about.channels),
                 takes_rgb(preprocessor))
        wanted = (self.about.mean, self.about.std,
                  self.about.channel_order == 'RGB')
        if not all(np.allclose(a, b) for a, b in zip(
                found[:2], wanted, strict=False)) or (
                    self.about.channels == 3 and found[2] != wanted[2]):
            raise ValueError(
                f'{str(self.path)!r} takes images that are normalised '
                'otherwise than those of the config: name the config that '
                'it was exported from.')

    def loader(self, batch_size: int | None, workers: int | None) -> dict:
        """The config of the dataloader: that of the test, with changes."""
        found = test_loader(self.cfg, batch_size, workers)
        return dict(found, collate_fn=dict(type=list)) if self.photos else (
            found)

    def samples(self, images: Images) -> Samples:
        """The dataset of images."""
        if self.photos:
            return Photos(images, self.cfg, self.about.channels)
        return Samples(images, self.cfg, self.model)

    def identity(self) -> str:
        """What stands for all that the scores of an image come from."""
        return digest(self.path)

    def usual(self) -> tuple[int | None, float | None]:
        """As of :class:`~gap_plugin.prediction.Classifier`."""
        return usual_of(self.model) if self._activation() is (
            torch.sigmoid) else (None, None)

    def _activation(self) -> Any:
        if self.about.scores == 'logits':
            several = isinstance(getattr(self.model, 'head', None),
                                 MultiLabelClsHead)
        else:
            several = self.about.scores == 'sigmoid'
        return torch.sigmoid if several else softmax

    def open(self, batch: Any, *, logits: bool = False, engine: str = 'auto',
             amp: bool = False, count: int | None = None) -> str:
        """As of :class:`~gap_plugin.prediction.Classifier`.

        Raises:
            ValueError: If it is asked for what the file does not give.
        """
        if engine not in ('auto', 'onnxruntime') or amp:
            asked = 'amp=True' if amp else f'engine={engine}'
            raise ValueError(f'{asked} is of a checkpoint: {str(self.path)!r} '
                             'is run by onnxruntime, in float32.')
        if logits and self.about.scores != 'logits':
            raise ValueError(
                f'{str(self.path)!r} gives probabilities: use '
                "output_type='prob', or export it with logits=True.")
        self.number = self(batch)[1].shape[1]
        import onnxruntime
        return f'onnxruntime {onnxruntime.__version__}'

    @torch.no_grad()
    def __call__(self, batch: Any) -> tuple[torch.Tensor | None,
                                            torch.Tensor]:
        """As of :class:`~gap_plugin.prediction.Classifier`."""
        if not self.photos:
            found = self._run(self.model.data_preprocessor(
                batch, training=False)['inputs'].numpy())
        elif len({photo.shape for photo in batch}) == 1:
            found = self._run(np.stack(batch))
        else:  # of several sizes: each alone
            found = np.concatenate([self._run(photo[None])
                                    for photo in batch])
        scores = torch.from_numpy(found)
        if self.about.scores == 'logits':
            return scores, self._activation()(scores)
        return None, scores

    def _run(self, images: np.ndarray) -> np.ndarray:
        given = self._session.get_inputs()[0]
        wanted = [side if isinstance(side, int) else found for side, found
                  in zip(given.shape, images.shape, strict=True)]
        if wanted[1:] != [*images.shape[1:]]:
            raise ValueError(
                f'{str(self.path)!r} takes images of {wanted[1:]}, and the '
                f'pipeline of the config gives {[*images.shape[1:]]}: name '
                'the config that it was exported from.')
        return self._session.run(
            [self._session.get_outputs()[0].name], {given.name: images})[0]


def _about(found: dict[str, Any], path: Path) -> About:
    """What a file says of itself, if it says all.

    Raises:
        ValueError: If it does not.
    """
    classes = found.get('classes')
    if not (set(found) >= {field.name for field in fields(About)}
            and found['input'] in ('photos', 'normalised')
            and found['scores'] in ('softmax', 'sigmoid', 'logits')
            and isinstance(found['channels'], int)
            and isinstance(classes, (list, type(None)))):
        raise ValueError(f'{str(path)!r} does not say what it takes and '
                         'gives: name a file that this package has exported.')
    return About(**dict(
        {field.name: found[field.name] for field in fields(About)},
        classes=None if classes is None else list(map(str, classes))))
