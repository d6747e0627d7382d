"""Train neck and head on stored features."""

from gap_plugin.cli.probe import main

if __name__ == '__main__':
    main()
