"""What a model looks at.

Reading order: :mod:`.class_activation` (maps), :mod:`.location` (where they
lie on an image), :mod:`.drawing` (pictures of them).
"""

from .class_activation import Folded, class_activation_map, fold
from .drawing import Panel, draw_maps, draw_panels
from .location import Location, locate

__all__ = ['Folded', 'Location', 'Panel', 'class_activation_map',
           'draw_maps', 'draw_panels', 'fold', 'locate']
