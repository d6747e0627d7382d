"""What a training has left in its work dir."""

import json
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..messages import shorten
from ..probing.choice import Score

#: What a probe leaves in its work dir.
PROBE = 'linear_probe.pth'
#: Metrics and rates that a page has no curve of.
_NO_CURVES = ('data_time', 'time', 'memory', 'epoch', 'iter', 'step')


def find_config(folder: Path) -> Path:
    """The config that a training has written to its work dir.

    Raises:
        ValueError: If there is none, or several.
    """
    configs = sorted(folder.glob('*.py'))
    if len(configs) != 1:
        told = ('holds no config, as a training writes it' if not configs else
                f'holds several configs ({shorten(p.name for p in configs)})')
        raise ValueError(f'work dir {str(folder)!r} {told}: name the config '
                         'and the checkpoint.')
    return configs[0]


def find_checkpoint(folder: Path, cfg: Config) -> tuple[Path, str]:
    """The best checkpoint of a work dir, or else the last one.

    As MMEngine marks them: by the name ``best_<metric>_...`` and by the file
    ``last_checkpoint``. Of several best ones, that of the metric which the
    config names first. Where no training was, that of a probe.

    Returns:
        Its path, and which one it is.

    Raises:
        ValueError: If there is none.
    """
    best = sorted(folder.glob('best_*.pth'), key=lambda p: p.stat().st_mtime)
    metric = Score(cfg).metric
    named = [path for path in best if metric and path.name.startswith(
        f'best_{metric.replace("/", "_")}_')]
    if best:
        chosen = (named or best)[-1]
        return chosen, 'the best' + (
            f' by {metric}' if named else '') + (
            f', of {len(best)} that are marked as best' if len(best) > 1
            else '')
    marked = folder / 'last_checkpoint'
    if marked.is_file():
        name = marked.read_text(encoding='utf-8').strip()
        # the folder may have been moved
        for path in (folder / Path(name.replace('\\', '/')).name,
                     Path(name)):
            if path.is_file():
                return path, 'the last one; none is marked as best'
    probed = folder / PROBE
    if probed.is_file():
        return probed, 'of a probe'
    raise ValueError(
        f'work dir {str(folder)!r} holds no checkpoint, so that no run has '
        'ended an epoch there: train first, or name the config and the '
        'checkpoint.')


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """What the runs of a work dir have logged, as MMEngine writes it.

    A run that went on where another one ended continues its curves.

    Returns:
        A row for each step: ``step`` and its numbers; rows with ``loss``
        count iterations, those of a validation epochs, or as the config has
        it. Empty if nothing was logged.
    """
    found: list[dict] = []
    files = sorted([*folder.glob('*/vis_data/scalars.json'),
                    *folder.glob('vis_data/scalars.json')], reverse=True)
    for file in files:
        rows = _rows(file)
        if not any('loss' in row for row in rows):
            continue  # of a test
        first = _first_steps(found)
        found = [row for row in rows if row['step'] < first.get(
            'loss' in row, float('inf'))] + found
        if min(_first_steps(found).values()) <= 1 or any(
                row.get('epoch') == 1 for row in rows):
            break
    return found


def _first_steps(rows: list[dict]) -> dict[bool, int]:
    """The first step of training rows (True), and of the others."""
    found: dict[bool, int] = {}
    for row in rows:
        found.setdefault('loss' in row, row['step'])
    return found


def _rows(file: Path) -> list[dict]:
    """Lines of a log; of one that was cut off, those that are whole."""
    found = []
    for line in file.read_text(encoding='utf-8',
                               errors='replace').splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get('step'), int):
            found.append(row)
    return found


def series(rows: list[dict]) -> tuple[dict[str, list], str]:
    """Curves of a log, times and counters left out.

    Returns:
        Name -> pairs of place and value; and what places count: epochs
        where the log tells them, or else steps.
    """
    first: dict[int, int] = {}  # epoch -> its first logged step
    for row in rows:
        if 'epoch' in row:
            first.setdefault(row['epoch'], row['step'])
    gaps = [(first[e + 1] - first[e]) for e in first if e + 1 in first]
    # of one epoch alone, nothing but its last log tells its length
    length = max(gaps or [row['step'] for row in rows if 'epoch' in row]
                 or [1])
    found: dict[str, list] = {}
    for row in rows:
        at = row['step'] / (length if 'epoch' in row else 1)
        for key, value in row.items():
            if key not in _NO_CURVES and isinstance(value, (int, float)):
                found.setdefault(key, []).append((at, float(value)))
    return found, 'epoch' if first else 'step'
