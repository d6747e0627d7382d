"""The sdist and the wheel hold what people need, and work from there."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from gap_plugin import requirements
from gap_plugin.shipped import shipped

ROOT = Path(__file__).parents[1]

#: Neither kept nor built from.
LEFT_OUT = shutil.ignore_patterns(
    '.git', '.venv*', '__pycache__', '*.egg-info', 'build', 'dist',
    'work_dirs', 'weights', '.pytest_cache', '.ruff_cache', 'shared')


def run(*arguments, cwd, path=None):
    """Run Python; what it prints, with nothing of this checkout on its path.

    What else is on ``PYTHONPATH``, such as another timm, stays there.
    """
    kept = [entry for entry in os.environ.get('PYTHONPATH', '').split(
        os.pathsep) if entry and Path(entry).resolve() != ROOT]
    env = {**os.environ,
           'PYTHONPATH': os.pathsep.join(([str(path)] if path else []) + kept)}
    done = subprocess.run([sys.executable, '-W', 'ignore', *map(
        str, arguments)], cwd=cwd, env=env, capture_output=True, text=True,
        check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Where the sdist and, made of what it holds, the wheel are."""
    folder = tmp_path_factory.mktemp('built')
    source, out = folder / 'source', folder / 'dist'
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    # the wheel is built of the sdist
    run('-m', 'build', '--no-isolation', '--outdir', out, source, cwd=folder)
    return out


@pytest.fixture(scope='module')
def sdist(built, tmp_path_factory):
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp('sdist')
    (archive, ) = built.glob('*.tar.gz')
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter='data')
    (unpacked, ) = folder.iterdir()
    return unpacked


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    """The wheel, installed where nothing else is."""
    folder = tmp_path_factory.mktemp('installed')
    (wheel, ) = built.glob('*.whl')
    run('-m', 'pip', 'install', '-q', '--no-deps', '--no-index',
        '--disable-pip-version-check', '--target', folder, wheel, cwd=folder)
    return folder


def files(folder):
    """Files of a part of the checkout, caches left out."""
    return {path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}


def test_wheel_holds_all_that_a_user_needs(built):
    (wheel, ) = built.glob('*.whl')
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (metadata, ) = (n for n in names if n.endswith('/METADATA'))
        text = opened.read(metadata).decode()
        (entry, ) = (n for n in names if n.endswith('/entry_points.txt'))
        assert 'gap-plugin = gap_plugin.__main__:main' in opened.read(
            entry).decode()
    assert {f'gap_plugin/.mim/{n}' for folder in ('configs', 'tools')
            for n in files(folder)} <= names
    assert files('gap_plugin') <= names
    assert {'gap_plugin/.mim/model-index.yml', 'gap_plugin/py.typed',
            'gap_plugin/stock/missing/pkg_resources.py'} <= names
    assert not [n for n in names if n.startswith(('tests', 'configs',
                                                  'tools'))]
    told = email.message_from_string(text)
    assert told['Author'] == 'gap_plugin contributors'
    assert told.get_payload().startswith('# gap_plugin')
    assert told['Requires-Python'] == f'>={requirements.PYTHON}'
    needed = {r.split(';')[0].strip() for r in told.get_all('Requires-Dist')
              if 'extra ==' not in r}
    # metadata sorts the bounds of one requirement
    assert {n.split('<')[0].split('>')[0] for n in needed} == {
        n.split('<')[0].split('>')[0] for n in requirements.INSTALL}
    assert set(told.get_all('Provides-Extra')) == set(requirements.EXTRAS)


def test_sdist_holds_the_rest_too(sdist):
    wanted = {name for folder in ('configs', 'tools', 'tests', 'gap_plugin')
              for name in files(folder)}
    wanted |= {'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'LICENSE',
               'README.md', 'model-index.yml', 'pyproject.toml', 'setup.py',
               '.pre-commit-config.yaml', '.ci/run',
               '.github/workflows/test.yml'}
    assert not [name for name in wanted if not (sdist / name).is_file()]


@pytest.mark.full
def test_tests_of_the_sdist_run(sdist):
    text = run('-m', 'pytest', '-n', '0', 'tests/test_datasets.py',
               cwd=sdist, path=sdist)
    assert ' passed' in text and 'skipped' not in text


def test_installed_wheel_works_from_an_empty_folder(installed, tmp_path):
    text = run('-c', """if True:
        from pathlib import Path
        import gap_plugin
        from gap_plugin.shipped import shipped
        from mmengine.config import Config
        cfg = Config.fromfile(shipped('configs') / 'digits/test_nfnet.py')
        print(Path(gap_plugin.__file__).parents[1])
        print(shipped('tools'))
        print(cfg.model.backbone.model_name)
        """, cwd=tmp_path, path=installed)
    # a host may print ahead of it
    assert text.splitlines()[-3:] == [
        str(installed), str(installed / 'gap_plugin' / '.mim' / 'tools'),
        'test_nfnet']
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_stand_ins_of_the_stock_scripts_are_found_there(installed, tmp_path):
    cfg = shipped('configs') / 'digits' / 'test_nfnet.py'
    hidden = tmp_path / 'pkg_resources_is_missing.py'
    hidden.write_text(f"""if True:
        import importlib.util as util, sys
        real = util.find_spec
        util.find_spec = lambda name, *a: (
            None if name == 'pkg_resources' else real(name, *a))
        sys.modules.pop('pkg_resources', None)
        from gap_plugin.stock import run
        run(['print_config', {str(cfg)!r}])
        import pathlib
        paths = [p for p in sys.path if p.endswith('missing')]
        print(paths[0], (pathlib.Path(paths[0]) /
                         'pkg_resources.py').is_file())""")
    text = run(hidden, cwd=tmp_path, path=installed)
    missing = installed / 'gap_plugin' / 'stock' / 'missing'
    assert text.endswith(f'{missing} True')
    assert "model_name='test_nfnet'" in text


def test_checkout_has_its_own_folders():
    assert shipped('configs') == ROOT / 'configs'
    assert shipped('tools') == ROOT / 'tools'


def test_a_kind_that_is_not_shipped_is_named():
    with pytest.raises(ValueError, match="'weights'"):
        shipped('weights')


def test_index_lists_each_config_once():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    listed = [model['Config'] for model in index['Models']]
    assert sorted(listed) == sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').glob('*/*.py')
        if path.parent.name != '_base_')
    (collection, ) = index['Collections']
    assert {m['In Collection'] for m in index['Models']} == {
        collection['Name']}
    assert [m['Name'] for m in index['Models']] == [
        c.removeprefix('configs/').removesuffix('.py') for c in listed]


def test_one_version_of_ruff():
    hook = yaml.safe_load(
        (ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['rev']
    assert f'ruff=={hook.removeprefix("v")}' in (
        ROOT / '.ci' / 'run').read_text()


def test_the_citation_has_the_version_of_the_package():
    from gap_plugin import __version__
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert cited['version'] == __version__


def test_workflow_runs_the_commands_of_the_readme():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    workflow = yaml.safe_load(
        (ROOT / '.github' / 'workflows' / 'test.yml').read_text())
    steps = workflow['jobs']['test']['steps']
    commands = [step['run'] for step in steps if 'run' in step]
    assert len(commands) == 2
    assert all(f'\n{command}\n' in readme for command in commands)
