"""What MMEngine and MMPretrain use of setuptools' former ``pkg_resources``.

Only on the path of a process that runs a script of MMPretrain where
setuptools (82 and newer) no longer has it.
"""

from importlib import metadata

from packaging.version import parse as parse_version

__all__ = ['DistributionNotFound', 'get_distribution', 'parse_version']

DistributionNotFound = metadata.PackageNotFoundError


class _Distribution:

    def __init__(self, name: str) -> None:
        self._found = metadata.distribution(name)
        self.version = self._found.version
        self.location = str(self._found.locate_file(''))

    def has_metadata(self, name: str) -> bool:
        return self._found.read_text(name) is not None

    def get_metadata(self, name: str) -> str:
        return self._found.read_text(name)


def get_distribution(name: str) -> _Distribution:
    """An installed distribution; DistributionNotFound if there is none."""
    return _Distribution(name)
