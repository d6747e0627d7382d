"""Rows that are done, on disk: a pass that is cut off goes on from them."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..features.store import differing, read_json, write_json
from ..files import put_in_place, remove_whole, written_whole

_PLAN, _ROWS, _BAD = 'plan.json', 'rows', 'skipped'
#: Bytes of rows that are read at a time.
PART = 1 << 24
#: The table, and what the rows are called once it is written.
_TABLE, _WRITTEN = 'table', 'written'


class RowsOnDisk:
    """The rows of a table that is being made, in order, in a folder.

    Args:
        out: The table. ``<out>.partial`` is the folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = partial_of(out)
        self.done = 0

    def plan(self) -> dict[str, Any] | None:
        """What makes the rows that are there; None if there are none."""
        path = self.folder / _PLAN
        return read_json(path) if path.is_file() else None

    def start(self, plan: dict[str, Any], kind: np.dtype,
              block: int) -> None:
        """Lay the folder out, or find the rows of a run that was cut off.

        Args:
            plan: What makes the rows; values that JSON has.
            kind: What a row is: a structured type.
            block: Rows that are computed together, and again if they are
                not all there.

        Raises:
            ValueError: If those that are there were made otherwise.
        """
        self.kind, made = kind, self.plan()
        if made is None:  # it holds no rows
            remove_whole(self.folder)
            self.folder.mkdir()
            write_json(self.folder / _PLAN, plan)
        elif made != plan:
            raise ValueError(
                f'{str(self.folder)!r} was begun otherwise: '
                f'{differing(made, plan)}; leave resume out and use '
                'force=True to drop it, or choose another file.')
        path = self._path()
        if path.is_file():
            self.done = path.stat().st_size // self.kind.itemsize
        if path.name == _ROWS and path.is_file():  # whole blocks
            self.done -= self.done % block
            with open(path, 'r+b') as file:
                file.truncate(self.done * self.kind.itemsize)
        told = self.folder / _BAD
        if told.is_file():  # whole lines, of rows that are there
            lines = told.read_bytes().splitlines(keepends=True)
            with open(told, 'r+b') as file:
                file.truncate(sum(
                    len(line) for line in lines if line.endswith(b'\n')
                    and json.loads(line)[0] < self.done))

    def _path(self) -> Path:
        written = self.folder / _WRITTEN
        return written if written.is_file() else self.folder / _ROWS

    @property
    def is_written(self) -> bool:
        """Whether the table is written, and perhaps in its place already."""
        return self._path().name == _WRITTEN

    def add(self, rows: np.ndarray, bad: Mapping[int, str]) -> None:
        """Add rows.

        Args:
            rows: The next ones.
            bad: Those of all that hold nothing, and why.

        Raises:
            OSError: If the disk does not take them.
        """
        told = ''.join(json.dumps([row, reason]) + '\n'
                       for row, reason in bad.items())
        try:
            for name, content in ((_BAD, told.encode()), (_ROWS, rows)):
                if len(content):  # reasons first: rows say what is done
                    with open(self.folder / name, 'ab') as file:
                        file.write(content)
                        file.flush()
                        os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno, f'cannot write to {str(self.folder)!r}: '
                f'{error.strerror}; mend the disk and go on with resume=True,'
                ' what is written is kept') from None
        self.done += len(rows)

    def bad(self) -> dict[int, str]:
        """Rows that hold nothing, and why."""
        path, found = self.folder / _BAD, {}
        if path.is_file():
            with open(path, encoding='utf-8') as file:
                found = dict(map(json.loads, file))
        return found

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Some rows at a time, so that memory does not grow with them.

        Yields:
            Number of the first one, and the rows.
        """
        count = min(1 << 16, max(1, PART // self.kind.itemsize))
        for start in range(0, self.done, count):
            yield start, np.fromfile(
                self._path(), self.kind,
                min(count, self.done - start),
                offset=start * self.kind.itemsize)

    def finish(self, write: Any) -> None:
        """Put the table in its place, and remove the folder.

        A run that is killed in between goes on here, too.

        Args:
            write: Writes the table to a path.
        """
        table = self.folder / _TABLE
        if (self.folder / _ROWS).exists():
            with written_whole(table) as path:
                write(path)
            os.replace(self.folder / _ROWS, self.folder / _WRITTEN)
        if table.exists():
            put_in_place(table, self.out)
        remove_whole(self.folder)


def partial_of(out: Path) -> Path:
    """Where the rows are while a table is being made."""
    return out.with_name(f'{out.name}.partial')
