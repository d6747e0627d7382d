"""What a ranking leaves: a CSV file, a table to paste, a plot."""

import csv
from pathlib import Path

from ..files import written_whole
from .plot import pareto, plot

COLUMNS = ('model', 'accuracy', 'metric', 'images_per_s', 'pareto',
           'params_m', 'features', 'img_size', 'lr', 'weight_decay', 'epoch',
           'seconds', 'error', 'low', 'high')


def write_tables(rows: list[dict], out: Path) -> None:
    """Tables and plot, the best first."""
    failed = [row for row in rows if 'error' in row]
    ranked = sorted((row for row in rows if 'error' not in row),
                    key=lambda row: -row['accuracy'])
    front = pareto(ranked)
    ranked = [dict(row, pareto=row in front) for row in ranked]
    with written_whole(out / 'ranking.csv') as path, open(
            path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ranked + failed)
    metric = ranked[0]['metric'] if ranked else 'accuracy'
    lines = [
        f'| network | {metric} (val, 95 %) | images/s | params (M) | '
        'features | image | Pareto front |', f'|{"---|" * 7}', *(
            f'| {row["model"]} | {row["accuracy"]:.2f}{_spread(row)} | '
            f'{row["images_per_s"]:.1f} | {row["params_m"]:.2f} | '
            f'{row["features"]} | {row["img_size"]} | '
            f'{"yes" if row["pareto"] else ""} |' for row in ranked), *(
            f'| {row["model"]} | failed: {row["error"]} | | | | | |'
            for row in failed)]
    with written_whole(out / 'ranking.md') as path:
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    if ranked:
        with written_whole(out / 'ranking.png') as path:
            plot(ranked, path)


def _spread(row: dict) -> str:
    """The interval of an accuracy, where there is one."""
    return (f' ({row["low"]:.1f} to {row["high"]:.1f})' if 'low' in row
            else '')
