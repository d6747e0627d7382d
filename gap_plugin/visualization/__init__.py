"""What a model looks at.

Reading order: :mod:`.chain` (what stands behind a feature map),
:mod:`.class_activation` (maps), :mod:`.location` (where they lie on an image),
:mod:`.drawing` (figures), :mod:`.explaining` (which maps say most of an
image), :mod:`.gallery` (pictures and folders of them), :mod:`.hook` (the same
in a test).
"""

from typing import Any

from .class_activation import Folded, class_activation_map, fold
from .explaining import Explainer, Explanation, numbers_of
from .gallery import Gallery, picture, sheet
from .hook import ClassActivationHook
from .location import Location, locate

_DRAWING = ('Panel', 'as_array', 'draw_maps', 'draw_panels')

__all__ = [
    'ClassActivationHook', 'Explainer', 'Explanation', 'Folded', 'Gallery',
    'Location', 'class_activation_map', 'fold', 'locate', 'numbers_of',
    'picture', 'sheet', *_DRAWING
]


def __getattr__(name: str) -> Any:
    """What draws comes when it is asked for: matplotlib takes a second."""
    if name in _DRAWING:
        from . import drawing
        return getattr(drawing, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
