"""Whether a file gives what the model gives, on images of its data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmengine.dataset import default_collate
from torch import nn

from ..datasets.loading import cannot_read
from .pipeline import check_preprocessor, pipeline_of, split_pipeline

#: Largest difference of logits and maps, by the largest one of an image.
NETWORK = 1e-4
#: Largest difference of a score, of a file with preprocessing and without.
SCORES, EXACT_SCORES = 0.005, 1e-4
#: What rounding to bytes may cost: accuracy, or where there are no labels, the
#: share of images with another likeliest class.
INT8 = 0.01
#: Largest difference of a pixel, 0 to 255.
PIXELS = 2
#: The same on average. An image that is enlarged by a fraction such as 3 / 2
#: has many pixels half-way between two bytes, which Pillow rounds by the
#: 22nd bit of its bilinear weights: readers of the file do it by the 21st.
AVERAGE = dict(bicubic=0.02, bilinear=0.25, nearest=0.)


@dataclass(frozen=True)
class Samples:
    """Images of a dataset, on the CPU.

    Attributes:
        inputs: As they leave the data preprocessor, ``(N, C, h, w)``.
        photos: As they are loaded, each ``(H, W, C)`` uint8 in the order R,
            G, B; None where they are not asked for.
        steps: Transforms between ``photos`` and packing.
        labels: Class of each image; None if not all have one.
    """

    inputs: torch.Tensor
    photos: list[np.ndarray] | None = None
    steps: tuple[Any, ...] = ()
    labels: np.ndarray | None = None

    @property
    def average(self) -> float:
        """How much pixels may differ on average."""
        return AVERAGE[next((step.interpolation for step in self.steps if
                             hasattr(step, 'interpolation')), 'nearest')]


@torch.no_grad()
def read_samples(dataset: Any, model: nn.Module, count: int,
                 photos: bool) -> Samples:
    """Read images that are spread evenly over a dataset.

    Args:
        dataset: Bound to the network of the model.
        model: The classifier, on the CPU, in eval mode.
        count: How many; all of a smaller dataset.
        photos: Whether what is loaded is kept, which only timm's test
            pipeline can be asked for.

    Raises:
        ValueError: If an image cannot be read, they have several sizes, or
            the pipeline is not timm's.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, count).round())
    loading, steps, pack = [], [], None
    if photos:
        check_preprocessor(model.data_preprocessor)
        loading, steps, pack = split_pipeline(pipeline_of(dataset))
    inputs, images, labels = [], [], []
    for row in map(int, rows):
        if not photos:
            packed = dataset[row]
        else:
            data = dataset.get_data_info(row)
            for step in loading:
                data = step(data)
            if not isinstance(data.get('img'), np.ndarray):
                raise ValueError(
                    cannot_read(data.get('img_path')) + 'nothing loads it: '
                    'put LoadTimmImage first in the test pipeline.')
            image = np.atleast_3d(data['img'])
            if image.shape[2] not in (1, 3):
                raise ValueError(
                    f'images of {image.shape[2]} channels are resized by '
                    'OpenCV, which ONNX has no counterpart of: use '
                    'preprocessing=False.')
            images.append(np.ascontiguousarray(image[..., ::-1]))
            for step in steps:
                data = step(data)
            packed = pack(data)
        batch = model.data_preprocessor(default_collate([packed]), False)
        inputs.append(batch['inputs'])
        label = getattr(packed.get('data_samples'), 'gt_label', None)
        if label is not None and label.numel() == 1:
            labels.append(int(label))
    shapes = {tuple(x.shape[1:]) for x in inputs}
    if len(shapes) > 1:
        raise ValueError(f'images come in several sizes {sorted(shapes)[:3]},'
                         ' and a file is for one: resize and crop them in '
                         'the test pipeline.')
    return Samples(torch.cat(inputs), images if photos else None,
                   tuple(steps), np.array(labels)
                   if len(labels) == len(inputs) else None)


@dataclass(frozen=True)
class Report:
    """How far a file is from the model, and on how many images.

    Attributes:
        images: Number of images.
        network: Largest difference of logits or maps, by the largest one of
            the image.
        scores: Largest difference of a score.
        top1: Images whose likeliest class is another one.
        pixels: Largest difference of a pixel, 0 to 255; None of a file
            without preprocessing.
        average: The same on average.
        limits: Of ``scores`` and ``average``.
        accuracies: Of the model and of an int8 file, 0 to 1, by the labels,
            or else by what the model finds; None of other files. ``scores``
            and ``top1`` have no limit then.
    """

    images: int
    network: float
    scores: float = math.nan
    top1: int = 0
    pixels: float | None = None
    average: float | None = None
    limits: tuple[float, float] = EXACT_SCORES, 0.
    accuracies: tuple[float, float] | None = None

    def check(self, kind: str = 'the ONNX file') -> None:
        """Refuse a file that is too far off.

        Raises:
            ValueError: With all differences that are too large.
        """
        scores, average = self.limits
        before, after = self.accuracies or (0., 0.)
        # not >, which not-a-number passes
        told = [f'{name} by {found:.3g}, {limit:g} at most'
                for name, found, limit in (
                    ('logits', self.network, NETWORK),
                    ('scores', None if self.accuracies else self.scores,
                     scores),
                    ('accuracy', round(before - after, 9), INT8),
                    ('pixels', self.pixels, PIXELS),
                    ('pixels on average', self.average, average))
                if found is not None and not found <= limit]
        if self.top1 and not self.accuracies:
            told.append(f'the likeliest class of {self.top1}')
        if told:
            raise ValueError(
                f'{kind} differs from PyTorch on {self.images} images '
                f'({"; ".join(told)}): there is no file.')

    def lines(self) -> dict[str, str]:
        """What was compared, for people."""
        pixels = '' if self.pixels is None else (
            f'pixels {self.pixels:g} of 255 at most, {self.average:.2g} on '
            'average, ')
        if self.accuracies:
            before, after = self.accuracies
            same = 1 - self.top1 / self.images
            return dict(checked=(
                f'on {self.images} images: {pixels}accuracy '
                f'{100 * before:.2f} before and {100 * after:.2f} in int8, '
                f'same top-1 of {100 * same:.1f} %'))
        return dict(checked=(
            f'on {self.images} images: {pixels}network {self.network:.1g} '
            f'(relative), scores {self.scores:.1g}, same top-1'))


def compare(expected: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]
            ) -> float:
    """Largest difference of outputs, by the largest one of each image."""
    worst = []
    for a, b in zip(expected, found, strict=True):
        axes = tuple(range(1, a.ndim))
        largest = np.abs(a).max(axes).clip(np.finfo(np.float32).tiny)
        worst.append((np.abs(a - b).max(axes) / largest).max())
    return float(np.max(worst))


def compare_scores(report: Report, expected: np.ndarray, found: np.ndarray,
                   limits: tuple[float, float]) -> Report:
    """Add to a report how far scores are from those of the model.

    Classes that the model itself scores alike, up to what scores may differ,
    count as one.

    Args:
        report: What is known of the file.
        expected: Probabilities ``(N, K)`` of the model.
        found: Of the file.
        limits: As of :class:`Report`.
    """
    rows = np.arange(len(expected))
    gap = expected.max(1) - expected[rows, found.argmax(1)]
    return replace(
        report, scores=float(np.abs(expected - found).max()),
        top1=int((~(gap <= limits[0])).sum()), limits=limits)


def compare_accuracy(report: Report, expected: np.ndarray,
                     found: np.ndarray, labels: np.ndarray | None) -> Report:
    """Add to a report of an int8 file how often both are right.

    Args:
        report: As :func:`compare_scores` has left it.
        expected: Probabilities ``(N, K)`` of the model.
        found: Of the file.
        labels: Class of each image; None for what the model finds.
    """
    model, file = expected.argmax(1), found.argmax(1)
    right = model if labels is None else labels
    return replace(report, top1=int((model != file).sum()), accuracies=(
        float((model == right).mean()), float((file == right).mean())))


def in_batches(run: Callable[[Any], tuple], inputs: Any,
               size: int = 8) -> tuple[np.ndarray, ...]:
    """Outputs for many images, as arrays, a few at a time."""
    found = [tuple(np.asarray(x) for x in run(inputs[i:i + size]))
             for i in range(0, len(inputs), size)]
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
