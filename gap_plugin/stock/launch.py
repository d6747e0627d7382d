"""Finds a script of MMPretrain and runs it."""

import runpy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from .old_names import SUPPLY

#: Where supplied modules lie; ahead of nothing that is installed.
MISSING = Path(__file__).parent / 'missing'


def scripts() -> dict[str, Path]:
    """Scripts of the MMPretrain that is installed, by name.

    Those of ``dataset_converters``, of other networks' converters and of
    TorchServe are none of them.
    """
    # without importing it, which takes seconds
    host = Path(find_spec('mmpretrain').origin).parent
    tools = host / '.mim' / 'tools'
    if not tools.is_dir():  # a checkout, installed with -e
        tools = host.parent / 'tools'
    folders = ('', 'analysis_tools', 'misc', 'visualization')
    found = [path for folder in folders
             for path in sorted((tools / folder).glob('*.py'))
             if path.stem != 'utils']
    found += [tools / 'model_converters' / f'{name}.py'
              for name in ('publish_model', 'reparameterize_model')]
    return {path.stem: path for path in found}


def run(arguments: list[str]) -> None:
    """Run a script as ``python SCRIPT ...`` would.

    Args:
        arguments: Name of the script, with or without ``.py``, and its own;
            ahead of it, any number of ``--import MODULE``.

    Raises:
        ValueError: If there is no such script.
        ImportError: If there is no such module.
    """
    known = scripts()
    imports = []
    while arguments[:1] == ['--import'] and len(arguments) > 1:
        imports.append(arguments[1])
        arguments = arguments[2:]
    name = arguments[0].removesuffix('.py') if arguments else None
    if name not in known:
        wrong = f'{name!r} is no script of MMPretrain' if name else (
            'no script is named')
        raise ValueError(f'{wrong}, use one of {", ".join(sorted(known))}.')
    if find_spec('pkg_resources') is None:
        sys.path.append(str(MISSING))
    from mmengine.registry import init_default_scope

    import gap_plugin  # noqa: F401, registers the parts; safe loading
    # not all scripts do: a transform of ours is then not found
    init_default_scope('mmpretrain')
    for module in imports:
        import_module(module)
    for supply in SUPPLY.get(name, ()):
        supply()
    path = known[name]
    sys.argv = [str(path), *arguments[1:]]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name='__main__')
