"""Features on disk: plain ``.npy`` files and a JSON file of what made them.

A store is complete or it is not there. It is written in a folder of its own
beside it, ``<name>.partial``, which is renamed when the last row is in, and
from which a killed run goes on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import TEMPORARY, put_in_place, remove_whole, written_whole

_ARRAYS = ('features.npy', 'labels.npy', 'sample_ids.npy')
_DESCRIPTION = 'store.json'
_CHUNK = 1 << 24  # bytes read at a time


class FeatureStore:
    """Features of one split, opened as memory maps.

    Args:
        folder: Where ``features.npy``, ``labels.npy``, ``sample_ids.npy``
            and ``store.json`` are.

    Attributes:
        features (np.ndarray): ``(N, C)``, float32 or float16, in the order
            of the dataset.
        labels (np.ndarray): ``(N, )`` class indices or ``(N, K)`` scores.
        sample_ids (np.ndarray): ``(N, )`` text, the path of each image.
        description (dict): ``fingerprint``, and what there is to know of
            the files.

    Raises:
        ValueError: If there is no store, or a file of it is truncated or
            has been edited.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / _DESCRIPTION).is_file():
            raise ValueError(
                f'{str(folder)!r} is no feature store: it has no '
                f'{_DESCRIPTION}; extract features first.')
        try:
            self.description = _read(self.folder / _DESCRIPTION)
            files = self.description['files']
            self.fingerprint = self.description['fingerprint']
            for name in _ARRAYS:
                self._check(name, files[name])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(self._damaged(_DESCRIPTION, error)) from None
        self.features, self.labels, self.sample_ids = (
            np.load(self.folder / name, mmap_mode='r') for name in _ARRAYS)

    def _check(self, name: str, known: dict[str, Any]) -> None:
        """Refuse a file that is not as it was written.

        Only one that has been touched is read: copies, and edits.
        """
        path = self.folder / name
        if not path.is_file():
            raise ValueError(self._damaged(name, 'it is missing'))
        found = path.stat()
        if found.st_size != known['bytes']:
            raise ValueError(self._damaged(
                name, f'{found.st_size} bytes in place of {known["bytes"]}'))
        if (found.st_mtime_ns != known['mtime_ns']
                and _digest(path) != known['blake2b']):
            raise ValueError(self._damaged(name, 'its content has changed'))

    def _damaged(self, name: str, why: Any) -> str:
        return (f'{str(self.folder / name)!r} is damaged ({why}): extract '
                'again with force=True.')

    def __len__(self) -> int:
        return len(self.features)

    def check(self, fingerprint: dict[str, Any]) -> None:
        """Refuse a store that something else has made.

        Args:
            fingerprint: Of what is to be used now.

        Raises:
            ValueError: If they differ; with the fields.
        """
        others = differing(self.fingerprint, fingerprint)
        if others:
            raise ValueError(
                f'{str(self.folder)!r} was made otherwise: {others}; '
                'extract again with force=True, or into another folder.')


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

    def prepare(self, labels: np.ndarray, sample_ids: Sequence[str],
                fingerprint: dict[str, Any]) -> None:
        """Lay the files out, or find those of a run that was cut off.

        Args:
            labels: ``(N, )`` or ``(N, K)``.
            sample_ids: N texts.
            fingerprint: What makes the features; values that JSON has.

        Raises:
            ValueError: If something else was being written there.
            OSError: If there is no room on the disk.
        """
        plan = self.partial / 'plan.json'
        if plan.is_file():
            others = differing(_read(plan), fingerprint)
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
            np.save(self.partial / 'labels.npy', labels)
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
            _write(plan, fingerprint)
        except OSError as error:
            shutil.rmtree(self.partial, ignore_errors=True)
            raise OSError(
                error.errno, f'cannot lay out {self.rows} x {self.width} '
                f'features under {str(self.folder.parent)!r}: '
                f'{error.strerror}; free space or choose another folder'
            ) from None

    def rows_in(self, index: int) -> int:
        """Rows of one block."""
        return min(self.block, self.rows - index * self.block)

    def missing(self) -> np.ndarray:
        """Indices of the blocks that are not written yet."""
        done = np.fromfile(self.partial / 'done', np.uint8)
        return np.flatnonzero(done == 0)

    def write(self, index: int, features: np.ndarray) -> None:
        """Write one block.

        Args:
            index: Which one.
            features: Its rows, ``(block, C)``.

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
            with open(self.partial / 'done', 'r+b') as file:
                file.seek(index)
                file.write(b'\1')
        except OSError as error:
            raise OSError(
                error.errno, f'cannot write to {str(self.partial)!r}: '
                f'{error.strerror}; mend the disk and run again, what '
                'is written is kept') from None

    def finish(self, fingerprint: dict[str, Any],
               **facts: Any) -> FeatureStore:
        """Describe the files and put the store in its place.

        Args:
            fingerprint: What makes the features; values that JSON has.
            **facts: What else is to stand in the description.

        Raises:
            ValueError: If blocks are missing.
        """
        missing = self.missing()
        if len(missing):
            raise ValueError(f'{len(missing)} of {self.blocks} blocks of '
                             f'{str(self.partial)!r} are missing, block '
                             f'{missing[0]} first; run the extraction again.')
        files = {}
        for name in _ARRAYS:
            path = self.partial / name
            found = path.stat()
            files[name] = dict(bytes=found.st_size, blake2b=_digest(path),
                               mtime_ns=found.st_mtime_ns)
        _write(self.partial / _DESCRIPTION, dict(
            fingerprint=fingerprint, rows=self.rows, width=self.width,
            files=files, **facts))
        for name in ('done', 'plan.json'):
            (self.partial / name).unlink()
        put_in_place(self.partial, self.folder)
        return FeatureStore(self.folder)


def remove(folder: str | Path,
           unless: dict[str, Any] | None = None) -> None:
    """Remove a store, and what there is of a half-written one.

    Args:
        folder: Of the store.
        unless: Fingerprint of what is left where it is.

    Raises:
        ValueError: If the folder holds something else.
    """
    folder = Path(folder)
    for path, made_by in ((folder, _DESCRIPTION),
                          (folder.with_name(f'{folder.name}.partial'),
                           'plan.json')):
        if not path.exists() or unless is not None and _made_by(
                path / made_by) == unless:
            continue
        other = sorted({TEMPORARY.sub('', p.name) for p in path.iterdir()} - {
            *_ARRAYS, _DESCRIPTION, 'done', 'plan.json'})
        if other:
            raise ValueError(f'{str(path)!r} holds {other[0]!r}, which is of '
                             'no feature store: choose another folder.')
        remove_whole(path)


def _made_by(path: Path) -> dict | None:
    """Fingerprint of a whole store, or of a half-written one."""
    try:
        if path.name == _DESCRIPTION:
            return FeatureStore(path.parent).fingerprint
        return _read(path)
    except (OSError, ValueError):
        return None


def differing(made: dict, now: dict) -> str:
    """Fields in which two fingerprints differ, with both values."""
    keys = [k for k in {**made, **now} if made.get(k) != now.get(k)]
    return ', '.join(f'{k} {str(made.get(k))[:80]} against '
                     f'{str(now.get(k))[:80]} now' for k in keys)


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


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write(path: Path, content: Any) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n',
                             encoding='utf-8')


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))
