"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A file to write in place of another: it is whole, or not there.

    Yields:
        The path to write to, which becomes ``path`` on the disk afterwards.

    Raises:
        OSError: If the disk does not take it; ``path`` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch.save's writer gives no OSError
        if (isinstance(error, RuntimeError)
                and 'inline_container' not in str(error)):
            raise
        raise OSError(
            f'cannot write {str(path)!r}, the disk may be full '
            f'({str(error).splitlines()[0][:120]}): free space and run '
            'again; what was there is whole.') from None
    os.replace(temporary, path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make renames in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
