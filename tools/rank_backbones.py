"""Compare backbones on your data."""

from gap_plugin.cli.rank import main

if __name__ == '__main__':
    main()
