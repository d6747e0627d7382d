"""Errors that more than one part gives."""

import torch
from torch import nn


def check_width(part: nn.Module, feats: torch.Tensor, width: int) -> None:
    """Refuse features of another width than a part was built for.

    Args:
        part: The neck or head, whose name goes into the message.
        feats: ``(N, C, ...)``.
        width: The C that it takes.

    Raises:
        ValueError: With both widths.
    """
    if feats.ndim < 2 or feats.shape[1] != width:
        name = type(part).__name__
        given = feats.shape[1] if feats.ndim > 1 else tuple(feats.shape)
        raise ValueError(
            f'{name} has in_channels={width}, but is given {given} channels: '
            f'set in_channels={given} in the {name}.')


def check_labels(lowest: int, highest: int, num_classes: int, head: str,
                 data: str, all_scored: bool = False) -> None:
    """Refuse labels that a head has no class for.

    Args:
        lowest: Smallest label.
        highest: Largest label.
        num_classes: Classes of the head.
        head: Its name.
        data: Where the labels are from.
        all_scored: Whether each class has a score, so that their numbers
            must be equal.

    Raises:
        ValueError: With the range of the labels.
    """
    if (lowest < 0 or highest >= num_classes
            or (all_scored and highest + 1 != num_classes)):
        raise ValueError(
            f'{data} has labels from {lowest} to {highest}, but num_classes '
            f'of {head} is {num_classes}: labels count from 0, set '
            'num_classes to the number of classes.')


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing: what it raises is for itself.

    Its guards are errors of the same types as those of an image that a
    network cannot take.
    """
    asked = getattr(torch.compiler, 'is_exporting',
                    torch.compiler.is_compiling)  # up to torch 2.6
    return asked()
