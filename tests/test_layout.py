"""How the code is laid out: who imports whom, what a file may hold."""

import ast
import re
from pathlib import Path

import pytest

from commands import ROOT

PACKAGE = ROOT / 'gap_plugin'

#: A part imports from what stands above it.
ORDER = ('version', 'requirements', 'messages', 'arguments', 'files',
         'locks', 'checkpoint_files', 'progress', 'shipped', 'host', 'stock',
         'timm_network', 'models', 'datasets', 'engine', 'recipes',
         'config_writer', 'visualization', 'export', 'features', 'probing',
         'prediction', 'report', 'ranking', 'cli')

#: file -> what it imports from below it, and why.
EXCEPTIONS = {}

#: A program of its own: what stands ahead of the name of a script.
EXEMPT = {'stock/launch.py': ['--import']}

FILES = sorted(path.relative_to(PACKAGE).as_posix()
               for path in PACKAGE.rglob('*.py'))


def part(file):
    """The part of the package that a file belongs to."""
    return Path(file).parts[0].removesuffix('.py')


def imported(file):
    """Parts of this package that a file imports, at any depth."""
    tree = ast.parse((PACKAGE / file).read_text(encoding='utf-8'))
    folder = ['gap_plugin', *Path(file).parts[:-1]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[:len(folder) + 1 - node.level] if node.level else []
            module = start + (node.module.split('.') if node.module else [])
            names = ['.'.join(module + [alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split('.')
            if first == 'gap_plugin' and rest:
                found.add(rest[0])
    return {name for name in found if (PACKAGE / name).is_dir()
            or (PACKAGE / f'{name}.py').is_file()}


def test_every_part_has_its_place_in_the_order():
    assert {part(file) for file in FILES} == {
        *ORDER, '__init__', '__main__'}


@pytest.mark.parametrize('file', [
    file for file in FILES if part(file) not in ('__init__', '__main__')])
def test_a_part_imports_from_those_above_it_alone(file):
    own = ORDER.index(part(file))
    below = {name for name in imported(file) if name != '__init__' and (
        name not in ORDER or ORDER.index(name) > own)}
    assert below == set(EXCEPTIONS.get(file, ()))


def test_nothing_but_the_entry_imports_the_commands():
    assert {file for file in FILES if 'cli' in imported(file)
            and part(file) != 'cli'} <= {'__main__.py'}


def test_an_import_from_below_is_found():
    """Of the kinds that there are: relative, absolute, inside a function."""
    assert {'files', 'probing', 'version'} <= imported('cli/probe.py')
    assert 'requirements' in imported('host.py')
    assert 'host' in imported('__main__.py')


def text_of(file):
    return (PACKAGE / file).read_text(encoding='utf-8')


@pytest.mark.parametrize('file', [
    file for file in FILES if part(file) not in ('cli', '__main__')])
def test_the_library_names_no_flag_and_no_tool(file):
    tree = ast.parse(text_of(file))
    named = {name for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)
             for name in re.findall(r'(?<![\w-])--[a-z][a-z-]+|tools/\w*',
                                    node.value)}
    assert named == set(EXEMPT.get(file, ()))


@pytest.mark.parametrize('file', FILES)
def test_no_file_is_over_300_lines(file):
    lines = len(text_of(file).splitlines())
    assert lines <= 300


def text_without_encoding(source):
    """Lines that read or write text as the system encodes it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(
                word.arg == 'encoding' for word in node.keywords):
            continue
        name, mode = ast.unparse(node.func), ast.unparse(node)
        if name.endswith(('.read_text', '.write_text')) or (
                name == 'open' and not re.search(r"'[rwax+]*b", mode)):
            yield node.lineno


def test_text_is_read_and_written_in_a_named_encoding():
    assert list(text_without_encoding(
        "open(a)\nopen(a, 'w')\nopen(a, 'rb')\na.b.read_text()\n"
        "open(a, mode='a', encoding='utf-8')")) == [1, 2, 4]
    for path in [ROOT / 'setup.py', *PACKAGE.rglob('*.py'),
                 *(ROOT / 'tools').rglob('*.py')]:
        if path.name == 'pkg_resources.py':
            continue  # of a distribution: importlib knows its encoding
        found = text_without_encoding(path.read_text(encoding='utf-8'))
        assert not list(found), path


@pytest.mark.parametrize('script', sorted(
    path.name for path in (ROOT / 'tools').glob('*.py')))
def test_a_script_is_a_few_lines_into_its_command(script):
    text = (ROOT / 'tools' / script).read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 20
    assert re.search(r'^from gap_plugin\.cli\.\w+ import main$', text, re.M)
