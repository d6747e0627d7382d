"""A network with its weights and its map; what it says of image sizes."""

import re
from functools import partial

import timm
from packaging.version import Version
from torch import nn

from ..messages import first_line
from ..requirements import TIMM_COMPLETE
from .create import (
    NetworkSpec,
    create_network,
    filter_of,
    newer_timm,
    sized_twin,
)
from .feature_map import FeaturePath, prepare
from .grids import Grids
from .image_settings import data_source
from .loading import Loading, apply_filter

#: Errors of the machine, which no other size of image would mend for sure.
_MACHINE = re.compile('out of memory|tried to allocate|ALLOC_FAILED|'
                      'CUDA error', re.IGNORECASE)


def prepared(
    spec: NetworkSpec, out_feature: str,
    out_indices: tuple[int, ...] | None
) -> tuple[nn.Module, Loading | None, FeaturePath]:
    """Build a network and find its map.

    Raises:
        ValueError: If its weights do not fit, it cannot be built for
            ``img_size``, or as :func:`create_network` and :func:`prepare`
            say.
    """
    model, loading, path = _prepared(spec, out_feature, out_indices)
    if loading is not None:
        older = Version(timm.__version__) < Version(TIMM_COMPLETE)
        unused = tuple(f'{m}.' for m in path.unused_modules)
        loading.check(
            spec.model_name, unused + path.unused_parameters,
            ' If they are right, this timm cannot read them without a '
            f'classifier or for another img_size: {newer_timm()}.'
            if older else '')
    return model, loading, path


def _prepared(
    spec: NetworkSpec, out_feature: str,
    out_indices: tuple[int, ...] | None
) -> tuple[nn.Module, Loading | None, FeaturePath]:
    try:
        model, loading = create_network(spec)
        size = (spec.in_channels, *image_size(spec, model))
        return model, loading, prepare(model, out_feature, out_indices, size,
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


def adapt(state_dict: dict, prefix: str, model: nn.Module, spec: NetworkSpec,
          unused: tuple[str, ...], source: tuple[int, int] | None) -> bool:
    """Make weights that are about to be loaded those of a network.

    Args:
        state_dict: Name -> tensor; changed in place.
        prefix: What stands ahead of the network's own names.
        model: The network.
        spec: What it was built from.
        unused: What begins like this has been taken off it.
        source: The image size that they are for, if they say.

    Returns:
        Whether there are any.

    Raises:
        ValueError: If the grid of their position embeddings is unknown.
    """
    found = {name[len(prefix):]: state_dict.pop(name)
             for name in list(state_dict) if name.startswith(prefix)}
    tensors = {name: value for name, value in found.items()
               if not name.startswith(unused)}
    if tensors:
        grids = Grids(model, image_size(spec, model),
                      partial(sized_twin, spec), 'the checkpoint')
        tensors = grids.adapt(tensors, source, ours=True)
        if grids.other_shape(tensors):
            tensors = apply_filter(filter_of(spec), tensors, model)
    state_dict.update((prefix + name, v) for name, v in tensors.items())
    return bool(found)
