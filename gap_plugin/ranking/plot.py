"""Accuracy against images/s, with the Pareto front."""

from pathlib import Path

import textalloc
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

#: How many of the best are named after those on the front, as room allows.
LABELS = 25
COLOURS = ('tab:blue', 'tab:orange')


def pareto(rows: list[dict]) -> list[dict]:
    """Networks that no other one beats in both, the fastest first."""
    front, best = [], float('-inf')
    for row in sorted(rows, key=lambda r: (-r['images_per_s'],
                                           -r['accuracy'])):
        if row['accuracy'] > best:
            front.append(row)
            best = row['accuracy']
    return front


def plot(rows: list[dict], path: Path) -> None:
    """Write :func:`draw`'s picture to a PNG file."""
    # by name of the format: the file is put in its place afterwards
    draw(rows).savefig(path, dpi=150, format='png')


def draw(rows: list[dict]) -> Figure:
    """Draw networks as dots, whose area is their number of parameters.

    Args:
        rows: With ``model``, ``accuracy``, ``metric``, ``images_per_s`` and
            ``params_m`` (millions); the best first.
    """
    figure = Figure(figsize=(10, 6.5), layout='constrained')
    axes = figure.add_subplot()
    largest = max(row['params_m'] for row in rows)

    def area(params: float) -> float:
        return 20 + 500 * params / largest

    front = pareto(rows)
    x, y = ([row[key] for row in rows]
            for key in ('images_per_s', 'accuracy'))
    line = [[row[key] for row in front]
            for key in ('images_per_s', 'accuracy')]
    dots = axes.scatter(
        x, y, [area(row['params_m']) for row in rows], alpha=.6,
        linewidths=.8, edgecolors='white',
        c=[COLOURS[row in front] for row in rows])
    if all('low' in row for row in rows):  # what chance may have done
        axes.errorbar(
            x, y, [[row['accuracy'] - row['low'] for row in rows],
                   [row['high'] - row['accuracy'] for row in rows]],
            fmt='none', ecolor='grey', alpha=.5, linewidth=.8, zorder=0)
    axes.plot(*line, color=COLOURS[True], linewidth=1.2, zorder=0,
              label='Pareto front')
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('images/s of the backbone (log scale)')
    axes.set_ylabel(f'{rows[0]["metric"]} on the validation split')
    axes.set_title('Linear probes of frozen backbones')
    axes.grid(alpha=.3, linewidth=.5)
    room = 1.7 * (max(x) / min(x)) ** .1
    axes.set_xlim(min(x) / room, max(x) * room)
    room = .5 + .1 * (max(y) - min(y))
    axes.set_ylim(min(y) - room, max(y) + room)
    for share in (1, .25):
        params = largest * share
        axes.scatter([], [], area(params), c=COLOURS[False], alpha=.6,
                     label=f'{params:.3g} M parameters')
    figure.legend(loc='outside lower center', ncols=3, frameon=False)
    named = sorted((i for i, row in enumerate(rows)
                    if i < LABELS or row in front),
                   key=lambda i: rows[i] not in front)
    figure.draw_without_rendering()  # the layout, ahead of the names
    textalloc.allocate(
        axes, [x[i] for i in named], [y[i] for i in named],
        [rows[i]['model'] for i in named], scatter_plot=dots,
        x_scatter=x, y_scatter=y, x_lines=[line[0]], y_lines=[line[1]],
        textsize=8, linecolor='grey', linewidth=.5, margin=.004,
        min_distance=.01, max_distance=.3, nbr_candidates=600,
        avoid_label_lines_overlap=True, avoid_crossing_label_lines=True,
        draw_all=False)
    return figure
