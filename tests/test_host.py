"""One host, whole: what is said when it is otherwise."""

import os
from importlib import metadata

import pytest

from commands import snippet
from gap_plugin import __version__, host, requirements

HOST = next(kind for kind, (name, *_) in requirements.HOSTS.items()
            if host._installed([name]))
OTHER = {'openmmlab': 'onedl', 'onedl': 'openmmlab'}[HOST]


def fake(folder, *names):
    """Leave traces of installed distributions, as pip does."""
    for name in names:
        info = folder / f'{name.replace("-", "_")}-9.0.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n')


def check():
    with pytest.raises(ImportError) as info:
        host.check_host()
    text = str(info.value)
    assert text.startswith('gap_plugin needs MMPretrain, but ')
    assert '\n' not in text
    return text


def removed(text):
    """What the advice has people uninstall."""
    command = text.split('pip uninstall -y ')[1].split(', then')[0]
    return set(command.split())


@pytest.mark.parametrize('part', (0, 1, 2))
def test_two_hosts_in_one_environment_are_found_out(
        part, tmp_path, monkeypatch):
    name = requirements.HOSTS[OTHER][part]
    fake(tmp_path, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version(name) == '9.0'
    text = check()
    ours = set(host._installed(requirements.FAMILIES[HOST]))
    assert 'two hosts' in text and len(ours) == 3
    assert removed(text) == {name} | ours
    assert all(f'"gap_plugin[{extra}]"' in text.split(', then ')[1]
               for extra in requirements.HOSTS)


def test_mmcv_of_any_name_counts(tmp_path, monkeypatch):
    fake(tmp_path, 'mmcv', 'mmcv-full', 'onedl-mmcv')
    monkeypatch.syspath_prepend(tmp_path)
    assert {'mmcv', 'mmcv-full', 'onedl-mmcv'} <= removed(check())


@pytest.mark.parametrize('folder_left', (False, True))
def test_half_a_host_gets_commands_that_repair_it(
        folder_left, tmp_path, monkeypatch):
    spec = host.find_spec('mmengine')

    class Left:
        origin = None

    monkeypatch.setattr(
        host, 'find_spec', lambda name: spec if name != 'mmengine' else
        Left() if folder_left else None)
    text = check()
    assert 'mmengine is not installed' in text
    # pip finds them "already satisfied": all have to go first
    assert removed(text) == set(
        host._installed(requirements.FAMILIES[HOST]))


def test_no_host_at_all_gets_the_two_commands_alone(monkeypatch):
    monkeypatch.setattr(host, 'find_spec', lambda name: None)
    monkeypatch.setattr(host, '_installed', lambda names: {})
    text = check()
    assert 'uninstall' not in text
    assert 'gap_plugin[openmmlab]' in text and 'gap_plugin[onedl]' in text


def test_python_without_find_loader_takes_the_fork_alone(monkeypatch):
    monkeypatch.delattr('pkgutil.find_loader', raising=False)
    if HOST == 'onedl':
        host.check_host()
        monkeypatch.setattr(host, 'find_spec', lambda name: None)
        monkeypatch.setattr(host, '_installed', lambda names: {})
        text = check()
    else:
        text = check()
        assert 'mmengine 0.10.7 does not run on Python 3.' in text
        assert 'mmengine' in removed(text)
    assert 'gap_plugin[onedl]' in text and '[openmmlab]' not in text


def test_two_hosts_end_an_import_in_one_line(tmp_path):
    fake(tmp_path, *requirements.HOSTS[OTHER])
    path = os.pathsep.join(filter(None, (
        str(tmp_path), os.environ.get('PYTHONPATH'))))
    done = snippet('import gap_plugin', PYTHONPATH=path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: gap_plugin needs MMPretrain, but two')


def test_a_torch_that_is_too_old_is_told(monkeypatch):
    monkeypatch.setitem(requirements.BOUNDS, 'torch', ('99.0', None))
    with pytest.warns(UserWarning, match='torch .*pip install "torch>=99.0"'):
        host.check_host()


@pytest.mark.parametrize('missing', ['mmpretrain', 'mmengine', 'mmcv'])
def test_import_without_a_host_gives_the_two_commands(missing):
    done = snippet(f"""
        import importlib.util as util
        find = util.find_spec
        util.find_spec = lambda n, *a: None if n == {missing!r} else find(n)
        import gap_plugin""")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: gap_plugin needs MMPretrain')
    assert missing in last and '[openmmlab]' in last and '[onedl]' in last


def test_version_out_of_bounds_is_warned_of(monkeypatch):
    monkeypatch.setitem(requirements.BOUNDS, 'timm', ('9.0', '9.1'))
    with pytest.warns(UserWarning, match='timm.*timm>=9.0,<9.1'):
        host.check_host()


def test_tested_versions_are_quiet(recwarn):
    host.check_host()
    assert not [w for w in recwarn if 'tested' in str(w.message)]


def test_import_neither_writes_files_nor_opens_sockets(tmp_path):
    done = snippet(f"""
        import sys
        seen = []
        import mmpretrain.models, timm
        def watch(event, args):
            if event == 'socket.connect':
                seen.append((event, args))
            if event == 'open' and isinstance(args[1], str) and any(
                    c in args[1] for c in 'wax+') and not str(
                        args[0]).endswith(('.pyc', 'null')) and not (
                        '.pyc.' in str(args[0])):
                seen.append((event, args))
        sys.addaudithook(watch)
        import gap_plugin
        print(seen, file=open({str(tmp_path / 'seen')!r}, 'w'))""")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / 'seen').read_text().strip()
    assert lines.count("('open'") <= 1, lines  # the report itself
    assert 'socket' not in lines


def test_import_works_without_the_test_suite_around_it(tmp_path):
    done = snippet('import gap_plugin; print(gap_plugin.__version__)')
    assert done.stdout.strip() == __version__
