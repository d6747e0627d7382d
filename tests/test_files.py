"""A file or a folder is whole or not there."""

import errno
import os
import time

import pytest

from gap_plugin.files import (
    flush_folder,
    put_in_place,
    remove_whole,
    written_whole,
)


def write(path, text):
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse_folders(monkeypatch, number):
    """An ``fsync`` that a file passes and a folder does not."""
    fsync, refused = os.fsync, []

    def refuse(handle):
        if os.path.isdir(f'/proc/self/fd/{handle}'):
            refused.append(number)
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, 'fsync', refuse)
    return refused


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOTSUP,
                                    errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch,
                                                     number):
    refused = refuse_folders(monkeypatch, number)
    write(tmp_path / 'a.txt', 'new')
    assert refused and (tmp_path / 'a.txt').read_text() == 'new'


def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    refuse_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match='Input/output error'):
        flush_folder(tmp_path)


@pytest.mark.parametrize('error, told', [
    (OSError(errno.ENOSPC, 'No space left on device'),
     r"cannot write '.*a\.txt', the disk may be full .*: free space and run"),
    (RuntimeError('inline_container.cc:1: file write failed'),
     r"cannot write '.*a\.txt', the disk may be full"),
    (PermissionError(errno.EACCES, 'Permission denied'),
     r"cannot write '.*a\.txt', it may be open or protected .*: close it"),
    (TypeError('no JSON'), '^no JSON$')])
def test_a_write_that_fails_leaves_the_former_file(tmp_path, error, told):
    path = tmp_path / 'a.txt'
    write(path, 'former')
    kind = OSError if 'cannot' in told else type(error)
    with pytest.raises(kind, match=told), written_whole(path) as temporary:
        temporary.write_text('half')
        raise error
    assert path.read_text() == 'former' and names(tmp_path) == ['a.txt']


def test_only_files_opened_for_writing_are_flushed(tmp_path, monkeypatch):
    fcntl = pytest.importorskip(
        'fcntl', reason='Windows tells no mode of an open file')
    fsync, modes = os.fsync, []

    def watch(handle):
        if not os.path.isdir(f'/proc/self/fd/{handle}'):
            modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        fsync(handle)

    monkeypatch.setattr(os, 'fsync', watch)
    write(tmp_path / 'a.txt', 'a')
    (tmp_path / 'new' / 'in').mkdir(parents=True)
    (tmp_path / 'new' / 'in' / 'b.txt').write_text('b')
    put_in_place(tmp_path / 'new', tmp_path / 'b')
    assert modes == [os.O_RDWR, os.O_RDWR]
    assert names(tmp_path) == ['a.txt', 'b']


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / 'a.txt'
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text('one')
        other.write_text('another')
    assert path.read_text() == 'one' and names(tmp_path) == ['a.txt']


def test_what_killed_writers_have_left_is_removed_after_a_day(tmp_path):
    old = time.time() - 2 * 24 * 3600
    for name in ('a.txt.0123abcd.tmp', 'a.txt.89abcdef.tmp', 'a.txt.mine.tmp',
                 'b.txt.0123abcd.tmp'):
        (tmp_path / name).touch()
        if '89' not in name:
            os.utime(tmp_path / name, (old, old))
    write(tmp_path / 'a.txt', 'a')
    assert names(tmp_path) == ['a.txt', 'a.txt.89abcdef.tmp',
                               'a.txt.mine.tmp', 'b.txt.0123abcd.tmp']


def test_a_folder_takes_the_place_of_another_or_does_not(tmp_path,
                                                         monkeypatch):
    for name in ('new', 'a'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'of').write_text(name)
    replace = os.replace

    def refuse(source, target):
        if source == tmp_path / 'new':
            raise PermissionError(errno.EACCES, 'Permission denied')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(PermissionError):
        put_in_place(tmp_path / 'new', tmp_path / 'a')
    assert (tmp_path / 'a' / 'of').read_text() == 'a'
    assert names(tmp_path) == ['a', 'new']
    monkeypatch.undo()
    put_in_place(tmp_path / 'new', tmp_path / 'a')
    assert (tmp_path / 'a' / 'of').read_text() == 'new'
    assert names(tmp_path) == ['a']


def test_a_folder_is_removed_or_all_of_it_is_there(tmp_path, monkeypatch):
    folder = tmp_path / 'a'
    folder.mkdir()
    (folder / 'of').write_text('a')

    def refuse(*_):
        raise PermissionError(errno.EACCES, 'in use')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', refuse)
        with pytest.raises(OSError, match=r"cannot remove '.*' \(in use\): "
                           'close what'):
            remove_whole(folder)
    assert names(folder) == ['of']
    for _ in range(2):  # what is not there is removed already
        remove_whole(folder)
        assert names(tmp_path) == []
