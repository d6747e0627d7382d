"""Lets Linux refuse what Windows refuses, for processes that find it here.

With the variable ``TEXT_ENCODING``, text files without an encoding have that
one, as on a Windows of Western Europe with ``cp1252``.
"""

import builtins
import errno
import fcntl
import io
import multiprocessing
import os
import shutil

for name in ('fdatasync', 'fork', 'killpg', 'posix_fadvise',
             'posix_fallocate', 'pread', 'pwrite', 'sched_getaffinity',
             'sched_setaffinity'):
    delattr(os, name)

multiprocessing.set_start_method('spawn', force=True)
shutil._use_fd_functions = False  # its way without open folders


def refusing(function, refused):
    """A function of ``os`` that looks at its arguments first."""
    def call(*args, **kwargs):
        why = refused(*args, **kwargs)
        if why:
            raise PermissionError(errno.EACCES, f'{why} (as on Windows)',
                                  str(args[0]))
        return function(*args, **kwargs)
    return call


def a_folder(path, *_, **__):
    """Folders cannot be opened."""
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.isdir(path):
        return 'a folder is opened'


def read_only(file):
    """What was opened for reading cannot be flushed."""
    handle = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return 'a file opened for reading is flushed'


def in_use(*paths, **_):
    """A file cannot be moved or removed while this process has it open.

    Nor can it be replaced, nor a folder moved that it is in.
    """
    held = set()
    for handle in os.scandir('/proc/self/fd'):
        try:
            held.add(os.readlink(handle.path))
        except OSError:  # that of the scan itself
            continue
    with open('/proc/self/maps', encoding='utf-8') as maps:
        held.update(line.split(None, 5)[-1].rstrip('\n') for line in maps
                    if '/' in line)
    for path in paths:
        if isinstance(path, int):
            continue
        path = os.path.realpath(os.fspath(path))
        for one in held:
            if one == path or one.startswith(f'{path}{os.sep}'):
                return f'{one} is open'


os.open = refusing(os.open, a_folder)
os.fsync = refusing(os.fsync, read_only)
for name in ('remove', 'rename', 'replace', 'unlink'):
    setattr(os, name, refusing(getattr(os, name), in_use))

ENCODING = os.environ.get('TEXT_ENCODING')
if ENCODING:
    real_open = io.open

    def text_open(file, mode='r', buffering=-1, encoding=None, *args,
                  **kwargs):
        """As ``open``, with the encoding of the system."""
        if 'b' not in mode and encoding in (None, 'locale'):
            encoding = ENCODING
        return real_open(file, mode, buffering, encoding, *args, **kwargs)

    builtins.open = io.open = text_open
    io.text_encoding = lambda encoding, level=2: encoding or ENCODING
