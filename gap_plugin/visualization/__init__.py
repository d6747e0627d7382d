"""What a model looks at.

Reading order: :mod:`.class_activation` (maps), :mod:`.location` (where they
lie on an image), :mod:`.drawing` (pictures of them), :mod:`.explaining` (which
maps say most of an image), :mod:`.gallery` (a folder of pictures),
:mod:`.hook` (the same in a test).
"""

from typing import Any

from .class_activation import Folded, class_activation_map, fold
from .explaining import (
    Explainer,
    Explanation,
    numbers_of,
    picture,
    sheet,
)
from .gallery import Gallery
from .hook import ClassActivationHook, as_array
from .location import Location, locate

_DRAWING = ('Panel', 'draw_maps', 'draw_panels')

__all__ = ['ClassActivationHook', 'Explainer', 'Explanation', 'Folded',
           'Gallery',
           'Location', 'as_array', 'class_activation_map', 'fold', 'locate',
           'numbers_of', 'picture', 'sheet', *_DRAWING]


def __getattr__(name: str) -> Any:
    """What draws comes when it is asked for: matplotlib takes a second."""
    if name in _DRAWING:
        from . import drawing
        return getattr(drawing, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
