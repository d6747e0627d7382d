"""What one run at a time may write to."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_BYTE = 1 << 20  # behind the text: Windows lets no one read what is locked


@contextmanager
def alone(lock: Path, subject: Path) -> Iterator[None]:
    """Keep other runs off something; a run that is killed lets go of it.

    Where no file can be written, or the disk has no locks, none is kept off.

    Args:
        lock: The file that is locked. That it is there means nothing.
        subject: What is written to, as messages name it.

    Raises:
        ValueError: If another run is at it.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, subject)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        try:
            # ahead of letting go: afterwards, it may be another run's
            lock.unlink(missing_ok=True)
        except OSError:  # Windows keeps what is open
            file.close()
            with suppress(OSError):
                lock.unlink()
        file.close()


def _locked(lock: Path, subject: Path) -> BinaryIO:
    """The file of a lock, open and held."""
    while True:
        file = open(lock, 'a+b')
        if not _take(file):
            with file:
                file.seek(0)
                holder = file.read(200).decode(errors='replace')
            raise ValueError(
                f'{str(subject)!r} is in use by another run ({holder}): wait '
                'for its end, or choose another folder.')
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                break
        file.close()  # its run has just ended, and removed it
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    file.flush()
    return file


def _take(file: BinaryIO) -> bool:
    """Lock a file, if no other process has it locked."""
    try:
        if fcntl:  # not inherited by the workers of a dataloader
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in _HELD
    return True
