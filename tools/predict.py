"""Predict the classes of images."""

from gap_plugin.cli.predict import main

if __name__ == '__main__':
    main()
