"""Patterns of files, as a shell has them, with ``**`` for any depth."""

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator
from itertools import takewhile

from .class_folders import files_below


def fixed_part(pattern: str) -> str:
    """The folder that all files of a pattern lie in; empty for this one."""
    return os.path.join('', *takewhile(
        lambda part: not glob.has_magic(part), _parts(pattern)))


def matching(pattern: str) -> Iterator[str]:
    """Files of a pattern, in order, each once, without what is hidden.

    Ours and not that of :mod:`glob` where folders are searched to any depth:
    a link to a folder above would lead that one round and round.
    """
    parts = _parts(pattern)
    deep = parts.index('**') if '**' in parts else len(parts)
    seen: set[str] = set()
    starts = (sorted(glob.glob(os.path.join(*parts[:deep]))) if deep
              else [os.curdir])
    for start in starts:
        files: Iterable[str] = [start]
        if os.path.isdir(start):
            files = files_below(start) if deep < len(parts) else []
        for file in files:
            rest = (os.path.relpath(file, start).split(os.sep)
                    if file != start else [])
            real = os.path.realpath(file)
            if real not in seen and _fits(rest, parts[deep:]):
                seen.add(real)
                yield file


def _parts(path: str) -> list[str]:
    """Parts of a path, the root of a drive among the first."""
    drive, rest = os.path.splitdrive(path)
    if os.altsep:
        rest = rest.replace(os.altsep, os.sep)
    first = drive + os.sep * rest.startswith(os.sep)
    return [first] * bool(first) + [p for p in rest.split(os.sep) if p]


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path are those of a pattern."""
    if not pattern:
        return not parts
    if pattern[0] == '**':
        return len(pattern) == 1 or any(_fits(parts[i:], pattern[1:])
                                        for i in range(len(parts)))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(
        parts[1:], pattern[1:])
