"""Store the features of a frozen network."""

from gap_plugin.cli.extract import main

if __name__ == '__main__':
    main()
