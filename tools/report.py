"""Write a page that finds what to mend in a model and its data."""

from gap_plugin.cli.report import main

if __name__ == '__main__':
    main()
