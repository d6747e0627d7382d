"""From images to scores of classes: what a classifier says of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmpretrain.models.classifiers import BaseClassifier
from mmpretrain.registry import DATASETS
from torch import nn

from ..engine.device import autocast
from ..features.engines import fastest
from ..features.fingerprint import hash_of, weights_of
from .images import Images, Samples, test_dataset, test_loader


class Logits(nn.Module):
    """The logits of a classifier, images in, ``(N, K)`` out.

    Args:
        model: The classifier.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Of heads that give several, their sum, as these predict by it."""
        found = self.model(images)
        return sum(found) if isinstance(found, (tuple, list)) else found


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of classes of which an image has one."""
    return torch.softmax(logits, dim=1)


class Classifier:
    """A model of MMPretrain, as something that scores images.

    Args:
        model: With its weights, as
            :func:`~gap_plugin.engine.building.build_classifier` gives it.
        cfg: The config that it was built from: images go through its test
            pipeline.

    Attributes:
        classes (list[str] | None): Their names, if they are known.
        number (int): Of the classes, known after :meth:`open`.

    Raises:
        ValueError: If it is no classifier, or the config has no test
            pipeline.
    """

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        if not isinstance(model, BaseClassifier):
            raise ValueError(
                f'{type(model).__name__} is no classifier, and has no scores '
                'of classes: name the config of an ImageClassifier.')
        self.model, self.cfg = model.eval(), cfg
        self.classes = class_names(model, cfg)
        self.number = 0
        self._run: Callable | None = None
        self._activation: Callable | None = None
        self._precision: AbstractContextManager = nullcontext()

    def loader(self, batch_size: int | None, workers: int | None) -> dict:
        """The config of the dataloader: that of the test, with changes."""
        return test_loader(self.cfg, batch_size, workers)

    def samples(self, images: Images) -> Samples:
        """The dataset of images."""
        return Samples(images, self.cfg, self.model)

    def identity(self) -> str:
        """What stands for all that the scores of an image come from."""
        return hash_of([weights_of(self.model), self.cfg.model,
                        test_dataset(self.cfg)['pipeline']])

    def usual(self) -> tuple[int | None, float | None]:
        """How many labels the head itself gives, and from which score on.

        Returns:
            A number, or None; a threshold, or None.
        """
        return usual_of(self.model) if self._activation is torch.sigmoid else (
            None, None)

    @torch.no_grad()
    def open(self, batch: dict[str, Any], *, logits: bool = False,
             engine: str = 'auto', amp: bool = False,
             count: int | None = None) -> str:
        """Find out how the classes are scored, and how fastest.

        Args:
            batch: Of the dataloader.
            logits: Whether logits are asked for.
            engine: What runs the network.
            amp: Whether under autocast.
            count: Of the images to come.

        Returns:
            The engine.

        Raises:
            ValueError: If the model predicts something else than one score a
                class, or has no logits.
        """
        images = self._images(batch)
        head = type(getattr(self.model, 'head', self.model)).__name__
        sample = self.model.predict(images[:1])[0]
        scores = sample.get('pred_score')
        if not torch.is_tensor(scores) or scores.ndim != 1:
            raise ValueError(f'{head} does not predict one score a class: '
                             'name a model of one set of classes.')
        self.number = len(scores)
        module = Logits(self.model)
        try:
            found = module(images[:1])
        except (AttributeError, TypeError, ValueError):
            found = None
        for activation in (softmax, torch.sigmoid):
            if getattr(found, 'shape', ()) == (1, self.number) and (
                    torch.allclose(activation(found.float())[0], scores,
                                   atol=1e-5)):
                self._activation = activation
                self._run = fastest(module, images, engine=engine, amp=amp,
                                    count=count)
                return self._run.name
        if logits or engine not in ('auto', 'torch'):
            raise ValueError(
                f'the scores of {head} do not follow from logits: use '
                "output_type='prob' and engine='torch'.")
        self._precision = autocast(images.device, amp)
        return 'torch'

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> tuple[torch.Tensor | None,
                                                       torch.Tensor]:
        """Score images.

        Args:
            batch: Of the dataloader.

        Returns:
            Logits ``(N, K)``, None where there are none, and probabilities.
        """
        images = self._images(batch)
        if self._activation is None:
            with self._precision:
                samples = self.model.predict(images)
            return None, torch.stack([
                sample.pred_score.float() for sample in samples])
        logits = torch.as_tensor(self._run(images)).float()
        return logits, self._activation(logits)

    def _images(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.model.data_preprocessor(batch, training=False)['inputs']


def usual_of(model: nn.Module | None) -> tuple[int | None, float | None]:
    """How many labels a head of several gives, and from which score on."""
    head = getattr(model, 'head', None)
    threshold, count = getattr(head, 'thr', .5), getattr(head, 'topk', 1)
    return (None if threshold is not None else count), threshold


def class_names(model: nn.Module, cfg: Config) -> list[str] | None:
    """Names of the classes of a model.

    Args:
        model: Of :func:`~gap_plugin.engine.building.build_classifier`: the
            names in its checkpoint come first.
        cfg: Whose test dataset has names else. It is not built.

    Returns:
        None if neither has names.
    """
    dataset = test_dataset(cfg)
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    for found in (
            (getattr(model, '_dataset_meta', None) or {}).get('classes'),
            dataset.get('classes'),
            (dataset.get('metainfo') or {}).get('classes'),
            (getattr(kind, 'METAINFO', None) or {}).get('classes')):
        if isinstance(found, str):
            found = list_from_file(found)
        if found:
            return [str(name) for name in found]
    return None

