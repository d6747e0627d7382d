"""What a file says of the model in it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import PIL
from torch import nn

from ..host import versions
from ..version import __version__
from .checking import Samples
from .pipeline import statistics, takes_rgb


@dataclass(frozen=True)
class About:
    """What a file says of itself: its metadata, each value as JSON.

    Attributes:
        classes: Names of the classes; None if they are not known.
        network: Name of the network.
        input: ``'photos'``: uint8 ``(N, H, W, C)`` of any size, turned
            upright; ``'normalised'``: float32 ``(N, C, h, w)``, as they
            leave the data preprocessor.
        channels: Channels of the image.
        channel_order: ``'RGB'`` or ``'BGR'`` of the input; ``''`` where
            there are not three.
        image_size: Height and width of the network's input.
        mean: Per channel, 0 to 255, of the network's input.
        std: Per channel, of values from 0 to 255.
        scores: What the first output holds: ``'softmax'``, ``'sigmoid'`` (of
            a multi-label head) or ``'logits'``.
        versions: Of what it was made by.
    """

    classes: list[str] | None
    network: str
    input: str
    channels: int
    channel_order: str
    image_size: list[int]
    mean: list[float]
    std: list[float]
    scores: str
    versions: dict[str, str]

    def metadata(self) -> dict[str, str]:
        """Key -> JSON, in ASCII."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}


def network_name(model: nn.Module) -> str:
    """What a file calls the network of a model."""
    backbone = getattr(model, 'backbone', model)
    return getattr(backbone, 'model_name', type(backbone).__name__)


def describe(model: nn.Module, samples: Samples, scores: str,
             classes: Sequence[str] | None, width: int) -> About:
    """What the file of a model says of itself.

    Args:
        model: The classifier.
        samples: Images that it takes.
        scores: As of :class:`About`.
        classes: Names of its classes, None if they are not known.
        width: How many it tells apart.

    Raises:
        ValueError: If the names are not as many.
    """
    if classes is not None and len(classes) != width:
        raise ValueError(f'there are {len(classes)} names of classes, and '
                         f'the model has {width}: give it those of its '
                         'training.')
    channels, *size = samples.inputs.shape[1:]
    mean, std = statistics(model.data_preprocessor, channels)
    order = '' if channels != 3 else 'RGB' if (
        samples.photos is not None
        or takes_rgb(model.data_preprocessor)) else 'BGR'
    return About(
        None if classes is None else [str(name) for name in classes],
        network_name(model),
        'normalised' if samples.photos is None else 'photos',
        channels, order, [int(side) for side in size], mean.tolist(),
        std.tolist(), scores, dict(
            versions(), gap_plugin=__version__, pillow=PIL.__version__))
