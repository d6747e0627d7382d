"""Writing a store: block by block, whole at the end, or gone on with."""

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import put_in_place, remove_whole
from .store import (
    ARRAYS,
    DESCRIPTION,
    KEPT,
    OPTIONAL,
    FeatureStore,
    compare,
    digest,
    read_json,
    write_json,
    written_alone,
)


class StoreWriter:
    """Writes the rows of a store, block by block, in any order.

    Several processes may write one store: one of them calls
    :meth:`prepare` and, in the end, :meth:`finish`; each writes its blocks.
    Rows are written by position in the file, so that memory does not grow
    with their number, and a full disk is an error and not a signal.

    Args:
        folder: Where the store is to be. ``<folder>.partial`` is used.
        rows: Number N of rows.
        width: Number C of features of a row.
        dtype: ``'float32'`` or ``'float16'``.
        block: Rows of a block; the last one may have fewer.
    """

    def __init__(self, folder: str | Path, rows: int, width: int, dtype: str,
                 block: int) -> None:
        self.folder = Path(folder)
        self.partial = self.folder.with_name(f'{self.folder.name}.partial')
        self.rows, self.width, self.block = rows, width, block
        self.dtype = np.dtype(dtype)
        self.blocks = -(-rows // block)
        self._offset = 0
        self._alone = ExitStack()

    def prepare(self, labels: np.ndarray | None, sample_ids: Sequence[str],
                fingerprint: dict[str, Any]) -> None:
        """Lay the files out, or find those of a run that was cut off.

        Args:
            labels: ``(N, )`` or ``(N, K)``; None for images without.
            sample_ids: N texts.
            fingerprint: What makes the features; values that JSON has.

        Raises:
            ValueError: If something else was being written there, or
                another run is at it.
            OSError: If there is no room on the disk.
        """
        self._alone.enter_context(written_alone(self.folder))
        plan = self.partial / 'plan.json'
        if plan.is_file():
            made = read_json(plan)
            made.pop('engines', None)
            # blocks are batches
            others, _ = compare(*(dict(side, block=side.get('batch_size'))
                                  for side in (made, fingerprint)))
            if others:
                raise ValueError(
                    f'{str(self.partial)!r} is half of another store: '
                    f'{others}; use force=True to drop it, or another '
                    'folder.')
            return
        # killed before its plan was there: it holds no features
        remove_whole(self.partial)
        self.partial.mkdir(parents=True)
        try:
            if labels is not None:
                np.save(self.partial / OPTIONAL, labels)
            np.save(self.partial / 'sample_ids.npy',
                    np.asarray(sample_ids, dtype=np.str_))
            path = self.partial / 'features.npy'
            with open(path, 'wb') as file:
                np.lib.format.write_array_header_1_0(
                    file, dict(descr=np.lib.format.dtype_to_descr(self.dtype),
                               fortran_order=False,
                               shape=(self.rows, self.width)))
                _reserve(file, self.rows * self.width * self.dtype.itemsize)
            (self.partial / 'done').write_bytes(bytes(self.blocks))
            write_json(plan, fingerprint)
        except OSError as error:
            shutil.rmtree(self.partial, ignore_errors=True)
            self._alone.close()
            raise OSError(
                error.errno, f'cannot lay out {self.rows} x {self.width} '
                f'features under {str(self.folder.parent)!r}: '
                f'{error.strerror}; free space or choose another folder'
            ) from None

    def engines(self) -> set[str]:
        """Names of what has made the rows so far."""
        return set(read_json(self.partial / 'plan.json').get('engines', ()))

    def note_engines(self, names: Collection[str]) -> None:
        """Keep names of what makes rows, for runs that go on."""
        path = self.partial / 'plan.json'
        write_json(path, dict(read_json(path), engines=sorted(names)))

    def rows_in(self, index: int) -> int:
        """Rows of one block."""
        return min(self.block, self.rows - index * self.block)

    def missing(self) -> np.ndarray:
        """Indices of the blocks that are not written yet."""
        done = np.fromfile(self.partial / 'done', np.uint8)
        return np.flatnonzero(done == 0)

    def write(self, index: int, features: np.ndarray,
              whole: bool = True) -> None:
        """Write one block.

        Args:
            index: Which one.
            features: Its rows, ``(block, C)``.
            whole: Whether no row of it is to be dropped. One that is not
                stays among the missing ones, so that a run that goes on
                finds out again which rows these are.

        Raises:
            ValueError: If they are not that many, or not finite.
            OSError: If the disk does not take them.
        """
        start = index * self.block
        rows = self.rows_in(index)
        if features.shape != (rows, self.width):
            raise ValueError(f'block {index} takes rows of shape '
                             f'{(rows, self.width)}, got {features.shape}.')
        features = np.ascontiguousarray(features, self.dtype)
        if not np.isfinite(features).all():
            row = start + int(np.argmin(np.isfinite(features).all(1)))
            raise ValueError(
                f'features of row {row} are not finite as {self.dtype}: '
                "check the weights, or use dtype='float32'.")
        try:
            with open(self.partial / 'features.npy', 'r+b') as file:
                if not self._offset:
                    np.lib.format.read_magic(file)
                    np.lib.format.read_array_header_1_0(file)
                    self._offset = file.tell()
                file.seek(self._offset
                          + start * self.width * self.dtype.itemsize)
                file.write(features)
                file.flush()
                os.fsync(file.fileno())  # ahead of the flag
            if whole:
                with open(self.partial / 'done', 'r+b') as file:
                    file.seek(index)
                    file.write(b'\1')
        except OSError as error:
            raise OSError(
                error.errno, f'cannot write to {str(self.partial)!r}: '
                f'{error.strerror}; mend the disk and run again, what '
                'is written is kept') from None

    def finish(self, fingerprint: dict[str, Any],
               dropped: Collection[int] = (), **facts: Any) -> FeatureStore:
        """Describe the files and put the store in its place.

        Args:
            fingerprint: Of the rows that stay.
            dropped: Rows to leave out, in order.
            **facts: What else is to stand in the description.

        Raises:
            ValueError: If blocks are missing.
        """
        missing = np.setdiff1d(self.missing(),
                               [row // self.block for row in dropped])
        if len(missing):
            raise ValueError(f'{len(missing)} of {self.blocks} blocks of '
                             f'{str(self.partial)!r} are missing, block '
                             f'{missing[0]} first; run the extraction again.')
        paths, files = {}, {}
        for name in ARRAYS:
            path = self.partial / name
            if name == OPTIONAL and not path.exists():
                continue
            if dropped:
                path = self._without(name, dropped)
            paths[name] = path
            found = path.stat()
            files[name] = dict(bytes=found.st_size, blake2b=digest(path),
                               mtime_ns=found.st_mtime_ns)
        write_json(self.partial / DESCRIPTION, dict(
            fingerprint=fingerprint, rows=self.rows - len(dropped),
            width=self.width, files=files, **facts))
        # without its plan, nothing is gone on with: first of all
        for name in ('plan.json', 'done'):
            (self.partial / name).unlink()
        for name, path in paths.items():
            os.replace(path, self.partial / name)
        put_in_place(self.partial, self.folder)
        self._alone.close()
        return FeatureStore(self.folder)

    def _without(self, name: str, dropped: Collection[int]) -> Path:
        """A copy of an array that lacks some rows."""
        path = self.partial / KEPT.format(name)
        source = np.load(self.partial / name, mmap_mode='r')
        kept = np.delete(np.arange(self.rows), list(dropped))
        with open(path, 'wb') as file:
            np.lib.format.write_array_header_1_0(file, dict(
                descr=np.lib.format.dtype_to_descr(source.dtype),
                fortran_order=False, shape=(len(kept), *source.shape[1:])))
            for part in np.array_split(kept, -(-len(kept) // 4096)):
                file.write(np.ascontiguousarray(source[part]))
        return path


def _reserve(file: BinaryIO, size: int) -> None:
    """Let a file be so many bytes longer, and keep room for them.

    Where the system cannot keep it (Windows, macOS), a disk that is full is
    told when a block is written: rows are written, not stored to a memory
    map, and so that is an error and no signal.
    """
    end = file.tell() + size
    file.truncate(end)
    if hasattr(os, 'posix_fallocate'):
        os.posix_fallocate(file.fileno(), 0, end)
