"""List timm's networks."""

from gap_plugin.cli.backbones import main

if __name__ == '__main__':
    main()
