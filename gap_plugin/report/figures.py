"""Diagrams of a page, as SVG in a data URI."""

import base64
import io
import re
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .predictions import Calibration

_BLUE, _GREY, _TEXT = '#1f5f8b', '#8a9099', '#1d2329'
_POINTS = 400  # of a curve


def reliability(found: Calibration) -> str:
    """Accuracy over confidence, with the images of each bin below."""
    figure = Figure(figsize=(4.6, 4.6), layout='constrained')
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    width = np.diff(found.edges)
    middle = found.edges[:-1] + width / 2
    there = found.counts > 0
    axes.bar(middle[there], found.accuracy[there], width[there] * .92,
             color=_BLUE, label='accuracy')
    axes.plot([0, 1], [0, 1], color=_TEXT, linewidth=1, linestyle='--',
              label='confidence = accuracy')
    axes.plot(found.confidence[there], found.accuracy[there], 'o',
              color='white', markeredgecolor=_TEXT, markersize=4,
              label='mean confidence of a bin')
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy')
    figure.legend(frameon=False, fontsize=7, loc='outside upper left',
                  ncols=3, columnspacing=1.)
    below.bar(middle, found.counts, width * .92, color=_GREY)
    below.set(xlabel='confidence', ylabel='images')
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    return _uri(figure, axes, below)


def curves(found: Mapping[str, list],
           unit: str) -> list[tuple[str, str, list[str]]]:
    """Curves of a training, in one diagram for each kind of figure.

    Args:
        found: Name -> pairs of place and value.
        unit: What places count.

    Returns:
        Title, SVG and names of each: losses, rates, then metrics as they
        come.
    """
    groups: dict[str, list[str]] = {}
    for name in found:
        kind = ('loss' if 'loss' in name else 'learning rate' if re.match(
            r'(base_)?lr\b', name) else name if 'norm' in name else
            name.rpartition('/')[0] or name)
        groups.setdefault(kind, []).append(name)
    order = ['loss', 'learning rate']
    kinds = sorted(groups, key=lambda kind: (
        order.index(kind) if kind in order else len(order),
        'norm' in kind))
    drawn = []
    for kind in kinds:
        figure = Figure(figsize=(4.6, 2.9), layout='constrained')
        axes = figure.subplots()
        for name in groups[kind]:
            points = np.array(found[name])
            step = -(-len(points) // _POINTS)
            axes.plot(*points[::step].T, label=name, linewidth=1.5,
                      marker='.' if len(points) < 40 else None)
        axes.set(xlabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis='y', style='sci', scilimits=(-3, 4))
        axes.set_title(kind, fontsize=9, loc='left', parse_math=False)
        if len(groups[kind]) > 1:
            for text in axes.legend(frameon=False, fontsize=8).get_texts():
                text.set_parse_math(False)
        drawn.append((kind, _uri(figure, axes), groups[kind]))
    return drawn


def _uri(figure: Figure, *places: Axes) -> str:
    for axes in places:
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(alpha=.25, linewidth=.5)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, colors=_TEXT)
    file = io.BytesIO()
    figure.savefig(file, format='svg', metadata=dict(Date=None))
    text = base64.b64encode(file.getvalue()).decode('ascii')
    return f'data:image/svg+xml;base64,{text}'
