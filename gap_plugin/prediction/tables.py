"""Predictions as CSV, JSON or Parquet, some rows at a time."""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

#: Columns, each with its values of some rows. Numbers are arrays; a masked
#: value, or a None, is left empty.
Part = list[Sequence]


def _plain(values: Sequence) -> list:
    """Values as Python's; a float32 with the fewest digits that tell it."""
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype == np.float32:
        shortest = np.ma.getdata(values).astype(str).astype(float)
        values = shortest if not np.ma.is_masked(values) else np.ma.array(
            shortest, mask=values.mask)
    return values.tolist()


def _rows(part: Part) -> Iterable[tuple]:
    return zip(*map(_plain, part), strict=True)


def _csv(path: Path, columns: dict[str, type], parts: Iterable[Part]) -> None:
    """As RFC 4180 has it, in UTF-8; what a name holds is quoted.

    Bytes of a file's name that are no UTF-8 stay as they are.
    """
    with open(path, 'w', newline='', encoding='utf-8',
              errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for part in parts:
            writer.writerows(_rows(part))


def _json(path: Path, columns: dict[str, type], parts: Iterable[Part]) -> None:
    """A list of objects, one a line."""
    ahead = '[\n'
    with open(path, 'w', encoding='utf-8') as file:
        for part in parts:
            for row in _rows(part):
                file.write(ahead + json.dumps(
                    dict(zip(columns, row, strict=True)), allow_nan=False))
                ahead = ',\n'
        file.write('\n]\n' if ahead != '[\n' else '[]\n')


def _parquet(path: Path, columns: dict[str, type],
             parts: Iterable[Part]) -> None:
    """A group of rows for each part."""
    import pyarrow
    from pyarrow import parquet
    kinds = {np.float32: pyarrow.float32(), int: pyarrow.int32(),
             str: pyarrow.string()}
    schema = pyarrow.schema({
        name: kinds[kind] for name, kind in columns.items()})
    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            arrays = [pyarrow.array(values, kind) for values, kind
                      in zip(part, schema.types, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema))


#: End of a name -> function of path, columns with their kinds, and parts.
FORMATS: dict[str, Callable[[Path, dict[str, type], Iterable[Part]], None]] = {
    '.csv': _csv, '.json': _json, '.parquet': _parquet}


def write_table(path: Path, suffix: str, columns: dict[str, type],
                parts: Iterable[Part]) -> None:
    """Write a table.

    Args:
        path: Where to.
        suffix: Of its name, which says which kind it is.
        columns: Their names, with the kind of their values: str, int or
            float32.
        parts: Its rows.
    """
    FORMATS[suffix.lower()](path, columns, parts)


def check_format(out: Path) -> None:
    """Refuse what no table can be written to.

    Raises:
        ImportError: If a library is missing.
        ValueError: If the end of the name is another one.
    """
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f'out={str(out)!r} must end in one of '
                         f'{", ".join(FORMATS)}.')
    if kind == '.parquet':
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ImportError(
                'Parquet files need pyarrow: pip install '
                '"gap_plugin[predict]", or write .csv or .json.') from None
