"""Train a model from a config."""

from gap_plugin.cli.train import main

if __name__ == '__main__':
    main()
