"""Accuracy against images/s, with the Pareto front."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402, after the choice above

#: Points in the plot of the names that are written, beside the front's.
LABELS = 30


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
    """Draw networks as dots, whose area is their number of parameters.

    Args:
        rows: With ``model``, ``accuracy`` (percent), ``images_per_s`` and
            ``params_m`` (millions); the best first.
        path: PNG file.
    """
    figure, axes = plt.subplots(figsize=(10, 6.5), layout='constrained')
    largest = max(row['params_m'] for row in rows)
    areas = [20 + 600 * row['params_m'] / largest for row in rows]
    front = pareto(rows)
    on_front = [row in front for row in rows]
    x = [row['images_per_s'] for row in rows]
    y = [row['accuracy'] for row in rows]
    axes.scatter(x, y, areas, alpha=.55, linewidths=.8, edgecolors='white',
                 c=['tab:orange' if one else 'tab:blue' for one in on_front])
    axes.plot([row['images_per_s'] for row in front],
              [row['accuracy'] for row in front], color='tab:orange',
              linewidth=1.2, zorder=0, label='Pareto front')
    axes.set_xscale('log')
    axes.set_xlabel('images/s of the backbone (log scale)')
    axes.set_ylabel(f'validation {rows[0]["metric"]} (%)')
    axes.set_title('Linear probe of frozen backbones')
    axes.grid(alpha=.3, which='both', linewidth=.5)
    axes.margins(x=.12, y=.12)
    for size in (largest, largest / 4):
        axes.scatter([], [], 20 + 600 * size / largest, c='tab:blue',
                     alpha=.55, label=f'{size:.3g} M parameters')
    axes.legend(loc='best', labelspacing=1.1, borderpad=.9)
    shown = [row for i, row in enumerate(rows)
             if on_front[i] or i < LABELS]
    _label(figure, axes, shown)
    # by name of the format: the file is put in its place afterwards
    figure.savefig(path, dpi=150, format='png')
    plt.close(figure)


def _label(figure: plt.Figure, axes: plt.Axes, rows: list[dict]) -> None:
    """Write names where they hide neither each other nor leave the plot."""
    figure.canvas.draw()
    inside = axes.get_window_extent()
    legend = axes.get_legend().get_window_extent()
    taken = [legend]
    for row in rows:
        for dx, dy, side in _PLACES:
            text = axes.annotate(
                row['model'], (row['images_per_s'], row['accuracy']),
                xytext=(dx, dy), textcoords='offset points', fontsize=8,
                ha=side, va='center',
                arrowprops=dict(arrowstyle='-', linewidth=.4, alpha=.5)
                if max(abs(dx), abs(dy)) > 12 else None)
            box = text.get_window_extent().padded(1)
            fits = (inside.x0 <= box.x0 and box.x1 <= inside.x1
                    and inside.y0 <= box.y0 and box.y1 <= inside.y1)
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()


#: Offsets in points and alignment of a name, the nearest first.
_PLACES = [(dx, dy, side) for radius in (8, 16, 28, 42)
           for dy in (0, radius, -radius)
           for dx, side in ((radius, 'left'), (-radius, 'right'))] + [
               (0, dy, 'center') for dy in (14, -14, 30, -30)]
