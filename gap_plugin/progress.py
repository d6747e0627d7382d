"""A progress bar, on terminals alone, and not with ``NO_COLOR``."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def bar(total: int, what: str, unit: str = 'images',
        shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how far something is, with its speed; gone when it is done.

    Args:
        total: How many there are.
        what: Stands ahead of the bar.
        unit: What is counted.
        shown: Whether there is a bar at all, such as on one process of
            several. In a pipe there is none.

    Yields:
        A function that takes how many more are done.
    """
    if not (shown and sys.stderr.isatty()) or os.environ.get('NO_COLOR'):
        yield lambda count: None
        return
    columns = (TextColumn('{task.description}'), BarColumn(),
               MofNCompleteColumn(),
               TextColumn(f'{unit}  {{task.fields[speed]}}'),
               TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True,
                  redirect_stdout=False) as progress:
        task = progress.add_task(what, total=total, speed='')

        def advance(count: int) -> None:
            progress.advance(task, count)
            rate = progress.tasks[0].speed
            progress.update(task, speed=f'{rate:.0f}/s' if rate else '')

        yield advance
