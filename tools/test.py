"""Evaluate a checkpoint."""

from gap_plugin.cli.test import main

if __name__ == '__main__':
    main()
