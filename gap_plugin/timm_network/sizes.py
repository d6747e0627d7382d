"""Which image size a network is built for, and what it says of others."""

import re

from torch import nn

from ..messages import first_line
from .create import NetworkSpec, create_network
from .feature_map import FeaturePath, prepare
from .image_settings import data_source
from .weights import KeyReport

#: Errors of the machine, which no other size of image would mend for sure.
_MACHINE = re.compile('out of memory|tried to allocate|ALLOC_FAILED|'
                      'CUDA error', re.IGNORECASE)


def prepared(
    spec: NetworkSpec, out_feature: str,
    out_indices: tuple[int, ...] | None
) -> tuple[nn.Module, KeyReport | None, FeaturePath]:
    """Build a network and find its map.

    Raises:
        ValueError: If it cannot be built for ``img_size``, or as
            :func:`create_network` and :func:`prepare` say.
    """
    try:
        model, report = create_network(spec)
        size = (spec.in_channels, *image_size(spec, model))
        return model, report, prepare(model, out_feature, out_indices, size,
                                      spec.key)
    # TypeError and ValueError are of other arguments
    except (ArithmeticError, AssertionError, IndexError,
            RuntimeError) as error:
        if spec.img_size is None:
            raise
        own = data_source(spec.model_name).pretrained_cfg['input_size'][1:]
        refused = size_refused(error, spec.model_name, spec.img_size, own)
        if refused is None:
            raise
        raise refused from error


def size_refused(error: Exception, model_name: str, size: tuple[int, int],
                 own: tuple[int, int]) -> ValueError | None:
    """What is said of an error of a network that ran on an image.

    Args:
        error: The error.
        model_name: Of the network.
        size: Height and width of the image.
        own: Those that the network is built for.

    Returns:
        An error that tells the sizes, None where the error is not of them.
    """
    if tuple(size) == tuple(own) or _MACHINE.search(str(error)):
        return None
    reason = first_line(error).rstrip('.')
    return ValueError(
        f'{model_name!r} cannot take an image of {size[0]} x {size[1]}: '
        f'{reason}; its own size is {own[0]} x {own[1]}, img_size of the '
        'backbone sets another.')


def image_size(spec: NetworkSpec, model: nn.Module) -> tuple[int, int]:
    """Height and width of an image that the network takes."""
    return spec.img_size or tuple(model.pretrained_cfg['input_size'][1:])
