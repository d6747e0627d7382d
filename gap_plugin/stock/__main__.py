"""``python -m gap_plugin.stock SCRIPT [arguments of the script]``."""

import sys

from . import run

if __name__ == '__main__':
    try:
        run(sys.argv[1:])
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'gap_plugin.stock: error: {error}')
