"""Files and folders that are whole or not there, on every system."""

import errno
import glob
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

#: End of the names that something has while it is no whole file or folder.
#: Each is drawn anew, so that two processes may write the same file.
TEMPORARY = re.compile(r'\.[0-9a-f]{8}\.tmp$')
_DAY = 24 * 60 * 60.
_REFUSALS = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS,
             errno.ENOTSUP, errno.EPERM}


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A file to write in place of another: it is whole, or not there.

    Yields:
        The path to write to, which becomes ``path`` on the disk afterwards.

    Raises:
        OSError: If it cannot be written; ``path`` is as before.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        put_in_place(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save's writer gives no OSError
        if (isinstance(error, RuntimeError)
                and 'inline_container' not in str(error)):
            raise
        why, to_do = ('the disk may be full', 'free space')
        if isinstance(error, PermissionError):
            why, to_do = ('it may be open or protected',
                          'close it, or allow writing there,')
        if not path.parent.is_dir():
            why, to_do = 'its folder is not there', 'make the folder'
        raise OSError(
            f'cannot write {str(path)!r}, {why} '
            f'({str(error).splitlines()[0][:120]}): {to_do} and run '
            'again; what was there is whole.') from None
    finally:
        # an error may leave it open: Windows keeps it then, for a day
        with suppress(PermissionError):
            temporary.unlink(missing_ok=True)


def read_text(path: str | Path) -> str:
    """The text of a file that people write, on whatever system.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{str(path)!r} is not UTF-8 (byte {error.start}): '
                         'save it as UTF-8.') from None


def put_in_place(written: Path, path: Path) -> None:
    """Let a file or folder that is written be what a path stands for.

    A folder takes the place of another one in two steps; between them, there
    is none.

    Args:
        written: What all has been written to; on the same disk.
        path: Its place.

    Raises:
        OSError: If the system refuses it; ``path`` is as before.
    """
    if not written.is_dir():
        _flush_file(written)
        os.replace(written, path)
        flush_folder(path.parent)
        return
    for part in [*written.rglob('*'), written]:
        (flush_folder if part.is_dir() else _flush_file)(part)
    former = _beside(path)
    if path.exists():
        os.replace(path, former)
    try:
        os.replace(written, path)
    except OSError:
        if former.exists():
            os.replace(former, path)
        raise
    flush_folder(path.parent)
    _clear(former)


def remove_whole(path: Path) -> None:
    """Remove a file or a folder, if it is there; all of it, or nothing.

    Raises:
        OSError: If the system refuses it: Windows does, while a file of it
            is open or mapped to memory.
    """
    if not path.exists():
        return
    former = _beside(path)
    try:
        os.replace(path, former)
    except PermissionError as error:
        raise OSError(
            f'cannot remove {str(path)!r} ({error.strerror}): close what '
            'has it open, such as a store that is in use, and run again; '
            'nothing of it is lost.') from None
    _clear(former)


def flush_folder(folder: Path) -> None:
    """Make new names in a folder last, where the system can do that.

    Windows opens no folder, and a network share may refuse it: there is
    nothing to be done then, and nothing wrong with the files.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise


def of_each(work: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """What a function gives of each of many files, by threads.

    It is for what waits for a disk, which may be at the other end of a
    network. Where the system refuses it (:exc:`OSError`), it is None.
    """

    def of_some(start: int) -> list[Any]:
        found = []
        for path in paths[start:start + 256]:
            try:
                found.append(work(path))
            except OSError:
                found.append(None)
        return found

    with ThreadPoolExecutor() as pool:
        return [one for some in pool.map(of_some, range(0, len(paths), 256))
                for one in some]


def _flush_file(path: Path) -> None:
    with open(path, 'r+b') as file:  # Windows flushes what can be written
        os.fsync(file.fileno())


def _beside(path: Path) -> Path:
    """A name of no other process; what killed ones have left is removed.

    A file may be another process's that writes. A folder has been put aside:
    it is of no use to anyone.
    """
    for left in path.parent.glob(f'{glob.escape(path.name)}.*.tmp'):
        with suppress(FileNotFoundError):  # another process was quicker
            if TEMPORARY.sub('', left.name) == path.name and (
                    left.is_dir()
                    or time.time() - left.stat().st_mtime > _DAY):
                _clear(left)
    return path.with_name(f'{path.name}.{uuid4().hex[:8]}.tmp')


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
