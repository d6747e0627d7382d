"""Write a trained model as one file that runs without this package."""

from gap_plugin.cli.export import main

if __name__ == '__main__':
    main()
