"""An image with the maps that say most of what a model sees in it."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from torch import nn

from ..engine.chance import seeded
from ..messages import shorten
from .chain import classifier_of
from .class_activation import check_classes, fold
from .location import Location, locate

#: What transformers have, whose positions have all seen each other.
_OF_TOKENS = ('num_prefix_tokens', 'pos_embed')


@dataclass(frozen=True)
class Explanation:
    """What a model sees in an image.

    Attributes:
        name: Of the image.
        image: As it was loaded, ``(H, W, 3)`` uint8, RGB; the network's input
            where the pipeline does not tell where that lies.
        location: Where the maps lie on it.
        classes: Numbers of the classes of the maps.
        maps: ``(K', h, w)``, in logits, on the CPU.
        titles: Of the maps.
        verdict: True and predicted class, a line each.
        note: What has to be said of the maps.
        predicted: Map of the likeliest class, ``(h, w)``.
        right: Whether that is a true class; None where none is known.
    """

    name: str
    image: np.ndarray
    location: Location | None
    classes: list[int]
    maps: torch.Tensor
    titles: list[str]
    verdict: str
    note: str
    predicted: torch.Tensor
    right: bool | None


class Explainer:
    """Explains images: which class is seen where.

    Without ``classes``, maps are those of the likeliest classes, of the true
    ones where they are known, and of one that is in the middle of the
    ranking: of a class that is not there, a map is empty.

    Args:
        model: An ``ImageClassifier``, ours or stock, in eval mode.
        pipeline: Of a test, from a file (or the array of a dataset) to
            ``inputs`` and ``data_samples``; bound to the network.
        names: Of the classes; None: their numbers.
        classes: Numbers of the classes to show; None: as said above.
        topk: How many of the likeliest ones, without ``classes``.
        up_to_factor: As of :func:`~gap_plugin.visualization.fold`.

    Raises:
        ValueError: If the model has no exact maps, or an argument is out of
            range.
    """

    def __init__(self, model: nn.Module, pipeline: Compose,
                 names: Sequence[str] | None = None,
                 classes: Sequence[int] | None = None, topk: int = 1,
                 up_to_factor: bool = False) -> None:
        self.folded = fold(model, up_to_factor)
        self.model = classifier_of(model)
        self.pipeline = pipeline
        count = len(self.folded.weight)
        if names is not None and len(names) != count:
            raise ValueError(f'{len(names)} names for the {count} classes of '
                             'the model: give one each.')
        if not 0 < topk <= count:
            raise ValueError(f'topk={topk} must be from 1 to {count}, the '
                             'number of classes.')
        self.names = ([_in_a_line(name) for name in names]
                      if names is not None else
                      [f'class {i}' for i in range(count)])
        if classes is not None:
            classes = check_classes(list(dict.fromkeys(classes)), count, 1)
        self.classes = None if classes is None else classes.tolist()
        self.topk = topk
        self.note = self.folded.note
        network = self.model.backbone
        network = getattr(network, 'timm_model', network)
        if any(hasattr(network, name) for name in _OF_TOKENS):
            self.note = '; '.join(filter(None, (
                'evidence read at each token', self.note)))
        self._locations: dict[tuple, Location | ValueError] = {}

    def __call__(self, info: dict[str, Any]) -> Explanation:
        """Explain an image of a dataset, or a file.

        Args:
            info: What the pipeline takes: ``dict(img_path=...)``, with
                ``gt_label`` where it is known.

        Raises:
            ValueError: If the pipeline cannot read it.
        """
        steps, results = list(self.pipeline.transforms), dict(info)
        arrays = 'img' in results  # of the dataset itself
        with seeded(0):
            while steps and 'img' not in results:
                results = steps.pop(0)(results)
        if 'img' not in (results or {}):
            raise ValueError('the pipeline loads no image: put a '
                             'LoadTimmImage first.')
        packed = _through(steps, results)
        image = results['img']
        location, note = self._location(steps, results, packed)
        if location is None:
            return self.of_input(packed, note)
        # files are loaded as BGR, and arrays are what is turned to RGB
        turned = not arrays or self._turns()
        return self._explained(packed, as_shown(image, turned), location)

    def of_input(self, packed: dict[str, Any], note: str = '') -> Explanation:
        """Explain what a pipeline gives, on itself.

        Args:
            packed: ``inputs`` ``(C, H, W)`` and ``data_samples``.
            note: What has to be said of it.
        """
        pixels = _inputs(packed).permute(1, 2, 0).cpu().numpy()
        return self._explained(packed, as_shown(pixels, self._turns()),
                               None, note)

    def _turns(self) -> bool:
        """Whether the network's inputs are BGR ahead of its preprocessor."""
        return bool(getattr(self.model.data_preprocessor, 'to_rgb', False))

    def _location(self, steps: list, results: dict,
                  packed: dict) -> tuple[Location | None, str]:
        """Where the input lies in the image, or why that is not known."""
        image = results['img']
        key = (image.shape, image.dtype.str, tuple(_inputs(packed).shape))
        if key not in self._locations:
            try:
                self._locations[key] = locate(
                    lambda ramp: _inputs(_through(steps, dict(
                        results, img=ramp))).permute(1, 2, 0).cpu().numpy(),
                    image)
            except ValueError as error:
                self._locations[key] = error
        found = self._locations[key]
        if isinstance(found, ValueError):
            return None, f'drawn on the input: {found}'
        return found, ''

    @torch.no_grad()
    def _explained(self, packed: dict, image: np.ndarray,
                   location: Location | None, note: str = '') -> Explanation:
        model, sample = self.model, packed['data_samples']
        data = model.data_preprocessor(
            dict(inputs=[_inputs(packed)], data_samples=[sample]), False)
        features = model.backbone(data['inputs'])
        vectors = features if model.neck is None else model.neck(features)
        logits = model.head(vectors)[0].float().cpu()
        (sample, ) = model.head.predict(vectors, data['data_samples'])
        size = tuple(data['inputs'].shape[-2:])
        if location is None:
            height, width = image.shape[:2]
            location = Location(np.eye(2, 3), (height, width))
        location = replace(location, size=size)  # which may be padded
        best = int(logits.argmax())
        truth, predicted = (
            sample.get(key).tolist() if key in sample else []
            for key in ('gt_label', 'pred_label'))
        classes, roles = self._chosen(logits, truth, predicted)
        wanted = classes if best in classes else [*classes, best]
        maps = self.folded.maps(features, wanted)[0].cpu()
        titles = [f'{role}{self.names[i]}, logit\xa0{logits[i]:.1f}'
                  for i, role in zip(classes, roles, strict=True)]
        name = _in_a_line(PurePath(str(sample.get('img_path') or 'image'))
                          .name)
        scores = sample.pred_score.float().cpu()
        verdict = 'predicted: ' + (', '.join(
            f'{self.names[i]} ({scores[i]:.2f})' for i in predicted)
            or 'nothing')
        if truth:
            true = ', '.join(self.names[i] for i in truth)
            verdict = f'true: {true}\n{verdict}'
        if maps[0, 0].numel() == 1:
            note = '; '.join(filter(None, (
                'a map has one position: a larger image has more', note)))
        return Explanation(
            name, image, location, classes, maps[:len(classes)], titles,
            verdict, '; '.join(filter(None, (self.note, note))),
            maps[wanted.index(best)], best in truth if truth else None)

    def _chosen(self, logits: torch.Tensor, truth: list[int],
                predicted: list[int]) -> tuple[list[int], list[str]]:
        """Classes to show, and what each is."""
        order = logits.argsort(descending=True).tolist()
        classes = self.classes
        if classes is None:
            classes = list(dict.fromkeys([*order[:self.topk], *truth]))
            rest = [i for i in order if i not in classes
                    and i not in predicted]
            classes += rest[len(rest) // 2:len(rest) // 2 + 1]

        def role(i: int) -> str:
            found = ['true'] * (i in truth) + ['predicted'] * (i in predicted)
            if not found and truth and self.classes is None and (
                    i not in order[:self.topk]):
                found = ['absent']
            return ' and '.join(found) + ': ' * bool(found)

        return classes, [role(i) for i in classes]


def numbers_of(classes: Sequence[str],
               names: Sequence[str] | None) -> list[int]:
    """Numbers of the classes of some names.

    Args:
        classes: Names; numbers where the classes have no names.
        names: Of all classes; None if they have none.

    Raises:
        ValueError: If there is no such class, with the nearest ones.
    """
    if names is None:
        wrong = [each for each in classes if not str(each).isdecimal()]
        if wrong:
            raise ValueError(f'{shorten(wrong)}: the classes have no names '
                             'here: give their numbers, from 0.')
        return [int(each) for each in classes]
    names = list(map(str, names))
    unknown = [str(each) for each in classes if str(each) not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 3, .5)
        raise ValueError(
            f'there is no class {unknown[0]!r}: '
            + (f'did you mean {shorten(near)}?' if near else
               f'there are {shorten(names)}.'))
    # a name may be that of several classes
    return [i for each in classes for i, name in enumerate(names)
            if name == str(each)]


def _through(steps: list, results: dict) -> dict:
    """The rest of a pipeline; what is random in it is the same each time."""
    results = dict(results)
    with seeded(0):
        for step in steps:
            results = step(results)
            if results is None:
                raise ValueError('the pipeline gives nothing of it.')
    return results


def _inputs(packed: dict) -> torch.Tensor:
    """The input of an image.

    Raises:
        ValueError: If there are several, or none.
    """
    found = packed.get('inputs')
    if not isinstance(found, torch.Tensor) or found.ndim != 3:
        raise ValueError('the pipeline gives no single image as inputs: take '
                         'the one of a test, that ends with PackInputs.')
    return found


def _in_a_line(name: Any) -> str:
    return ' '.join(str(name).split()) or repr(str(name))


def as_shown(image: np.ndarray, turned: bool) -> np.ndarray:
    """An image as RGB, whatever its channels and values are.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``.
        turned: Whether its colours are BGR.
    """
    if image.ndim == 3:
        few = image.shape[2] < 3
        image = image[..., :1].repeat(3, 2) if few else image[..., :3]
        image = image[..., ::-1] if turned and not few else image
    else:
        image = np.repeat(image[..., None], 3, axis=2)
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = (255 * (image - low) / (high - low or 1)).astype(np.uint8)
    return np.ascontiguousarray(image)
