"""Pictures of class activation maps, on the images that they are of.

Colour is the sign, red for and blue against a class, and opacity the absolute
value, on one scale that is symmetric about 0 and the same in all panels of a
figure: a class that is not there looks empty. Figures are made without
pyplot, so that nothing of a process changes.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.transforms import Affine2D
from PIL import Image

from .location import Location

_COLOURS = colormaps['RdBu_r']
#: Of the largest value: what is under it can still be made out.
_OPACITY = .9
_PANEL = 2.4  # inches
DPI = 110
_PIXELS = 640  # of an image's longer side, as it is drawn
#: What has no sign of its own, and characters of no text.
_CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]+')


@dataclass(frozen=True)
class Panel:
    """A map on its image.

    Attributes:
        image: The original one, ``(H, W, 3)`` or ``(H, W)``, uint8, RGB.
        title: Above the map.
        map: ``(h, w)``, in logits; None for the image alone.
        location: Where the map lies on the image; None: it covers it.
        right: Whether the prediction is right, for the colour of the title;
            None where that is not known.
    """

    image: np.ndarray
    title: str
    map: Any = None
    location: Location | None = None
    right: bool | None = None


def draw_maps(image: np.ndarray,
              maps: Any,
              titles: Sequence[str],
              location: Location | None = None,
              heading: str = '',
              note: str = '',
              scale: float | None = None) -> Figure:
    """Draw the maps of one image side by side, behind the image itself.

    Args:
        image: The original one, ``(H, W, 3)`` or ``(H, W)``, uint8, RGB.
        maps: ``(K', h, w)``, in logits.
        titles: Of the maps, K'.
        location: Where the maps lie on the image, as
            :func:`~gap_plugin.visualization.locate` finds it; None: they
            cover it.
        heading: Above all.
        note: Below all.
        scale: Value of full colour; None for the largest absolute one.

    Returns:
        The figure. ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If there are not as many titles as maps.
    """
    if len(maps) != len(titles):
        raise ValueError(f'{len(titles)} titles for {len(maps)} maps: give '
                         'one each.')
    panels = [Panel(image, 'image', None, location)]
    panels += [Panel(image, title, each, location)
               for title, each in zip(titles, maps, strict=True)]
    return draw_panels(panels, min(len(panels), 5), heading, note, scale)


def draw_panels(panels: Sequence[Panel], columns: int, heading: str = '',
                note: str = '', scale: float | None = None) -> Figure:
    """Draw panels row by row, on one scale, with its colour bar.

    Args:
        panels: One at least.
        columns: How many stand in a row.
        heading: Above all.
        note: Below all.
        scale: Value of full colour; None for the largest absolute one.
    """
    maps = [None if panel.map is None else torch.as_tensor(
        panel.map).detach().float().cpu() for panel in panels]
    if scale is None:
        scale = max((float(each.abs().max()) for each in maps
                     if each is not None), default=0.) or 1.
    rows = -(-len(panels) // columns)
    tall = sorted(panel.image.shape[0] / panel.image.shape[1]
                  for panel in panels)[len(panels) // 2]
    height = _PANEL * min(max(tall, .5), 1.6) + .45
    figure = Figure(figsize=(_PANEL * columns + .9,
                             height * rows + .35 * bool(heading)),
                    dpi=DPI, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, each, place in zip(panels, maps, axes.flat, strict=False):
        _draw(place, panel, each, scale)
    for place in axes.flat[len(panels):]:
        place.set_axis_off()
    if heading:
        figure.suptitle(as_text(heading, 28 * columns), fontsize=10,
                        parse_math=False)
    if note:
        figure.supxlabel(as_text(note, 30 * columns), fontsize=7,
                         color='dimgrey', parse_math=False)
    if any(each is not None for each in maps):
        bar = figure.colorbar(
            ScalarMappable(Normalize(-scale, scale), _on_white()), ax=axes,
            fraction=.05, aspect=25 * rows, pad=.01)
        bar.set_label('logit at a position', fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def as_text(name: str, width: int = 32, lines: int = 2) -> str:
    """Names as a figure can show them, whatever they hold.

    Args:
        name: Each of its lines is wrapped by itself.
        width: Characters of a line.
        lines: Lines that each becomes at most.
    """
    name = name.encode('utf-8', 'backslashreplace').decode()
    return '\n'.join(
        line for part in name.split('\n')
        for line in textwrap.wrap(_CONTROL.sub(' ', part), width,
                                  max_lines=lines, placeholder=' ...')) or ' '


def save(figure: Figure, path: str | Path | io.BytesIO) -> None:
    """Write a figure as a PNG file, whatever the path ends with.

    What no font has is shown as boxes: one warning says so, and not one a
    sign.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        figure.savefig(path, dpi=DPI, format='png')
    _tell(caught)


def as_array(figure: Figure) -> np.ndarray:
    """A figure as an image ``(H, W, 3)``, uint8, RGB."""
    content = io.BytesIO()
    save(figure, content)
    with Image.open(content) as image:
        return np.asarray(image.convert('RGB'))


def _tell(caught: list[warnings.WarningMessage]) -> None:
    """Warn again, of all signs that no font has at once."""
    texts = dict.fromkeys(str(each.message) for each in caught)
    for text in texts:
        if not text.startswith('Glyph '):
            warnings.warn(text, stacklevel=3)
    if any(text.startswith('Glyph ') for text in texts):
        warnings.warn(
            'signs of some names are in no font that matplotlib has, and are '
            'drawn as boxes: install a font that has them, and name it by '
            'font.family in a matplotlibrc.', stacklevel=3)


def _draw(axes: Axes, panel: Panel, values: torch.Tensor | None,
          scale: float) -> None:
    height, width = panel.image.shape[:2]
    shown = Image.fromarray(panel.image)
    shown.thumbnail((_PIXELS, _PIXELS))
    extent = (0, width, height, 0)
    if values is None:
        axes.imshow(np.asarray(shown.convert('RGB')), extent=extent)
    else:  # grey and light, so that colour is the map's alone
        axes.imshow(.35 + .65 / 255 * np.asarray(shown.convert('L')),
                    cmap='gray', vmin=0, vmax=1, extent=extent)
    place = panel.location or Location.whole(panel.image)
    to_image = Affine2D(np.vstack([place.matrix, [0, 0, 1]]))
    if values is not None:
        axes.imshow(coloured(values, scale), interpolation='nearest',
                    extent=(0, place.size[1], place.size[0], 0),
                    transform=to_image + axes.transData)
    if panel.location is not None:
        for colour, dashes in (('white', 'solid'), ('black', (0, (4, 3)))):
            axes.add_patch(Polygon(place.corners(), fill=False, linewidth=.8,
                                   edgecolor=colour, linestyle=dashes))
    # a crop may reach beyond the image: a border is shown as far as it goes
    corners = np.vstack([place.corners(), [(0, 0), (width, height)]])
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect('equal')
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour = {True: 'darkgreen', False: 'firebrick', None: 'black'}
    axes.set_title(as_text(panel.title), fontsize=8, parse_math=False,
                   color=colour[panel.right])


def coloured(values: torch.Tensor, scale: float) -> np.ndarray:
    """A map as RGBA, with positions joined bilinearly."""
    sides = [side * max(1, round(256 / max(values.shape)))
             for side in values.shape]
    values = F.interpolate(values[None, None], size=sides, mode='bilinear',
                           align_corners=False)[0, 0].numpy() / scale
    colours = _COLOURS(np.clip(values, -1, 1) / 2 + .5)
    colours[..., 3] = _OPACITY * np.abs(np.clip(values, -1, 1))
    return colours


def _on_white() -> ListedColormap:
    """The colours of maps as they look on white, for the bar."""
    at = np.linspace(-1, 1, 255)
    opacity = _OPACITY * np.abs(at)[:, None]
    return ListedColormap(opacity * _COLOURS(at / 2 + .5)[:, :3]
                          + 1 - opacity)
