"""Draw where a model sees its classes."""

from gap_plugin.cli.cam import main

if __name__ == '__main__':
    main()
