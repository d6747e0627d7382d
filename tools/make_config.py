"""Write a config for a network and your data."""

from gap_plugin.cli.new_config import main

if __name__ == '__main__':
    main()
