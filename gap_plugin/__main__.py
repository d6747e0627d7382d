"""``gap-plugin COMMAND ...``, and ``python -m gap_plugin COMMAND ...``."""

import sys
from importlib import import_module

#: Command -> its module in :mod:`gap_plugin.cli`, and what it does.
COMMANDS = {
    'train': ('train', 'train a model from a config'),
    'test': ('test', 'evaluate a checkpoint'),
    'predict': ('predict', 'predict the classes of images, as a table'),
    'extract': ('extract', 'store the features of a frozen network'),
    'probe': ('probe', 'train neck and head on stored features'),
    'cam': ('cam', 'draw where a model sees its classes'),
    'report': ('report', 'a page that finds what to mend in the data'),
    'rank': ('rank', 'compare backbones on your data'),
    'export': ('export', 'write a model as a file to deploy'),
    'backbones': ('backbones', "list timm's networks, or describe one"),
    'new-config': ('new_config', 'write a config for a network and your data'),
}


def usage() -> str:
    """What there is."""
    lines = ''.join(f'  {name:12} {about}\n'
                    for name, (_, about) in COMMANDS.items())
    return ('usage: gap-plugin COMMAND ...\n       gap-plugin COMMAND --help\n'
            f'       gap-plugin --version\n\n{lines}')


def version() -> str:
    """Versions of this package and of what its figures depend on."""
    from .host import versions
    from .version import __version__
    found = dict(gap_plugin=__version__, python=sys.version.split()[0],
                 **versions())
    return '\n'.join(f'{name} {number}' for name, number in found.items())


def main(argv: list[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Its name and flags; those of the process by default.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help'):
        print(usage(), end='')
    elif name == '--version':
        print(version())
    elif name in COMMANDS:
        module = import_module(f'.cli.{COMMANDS[name][0]}', __package__)
        module.main(arguments, f'gap-plugin {name}')
    else:
        sys.exit(f'gap-plugin: error: there is no command {name!r}, there '
                 f'are {", ".join(COMMANDS)}.')


if __name__ == '__main__':
    main()
