"""Convert a table of observables to CSV, pandas or xarray."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from numpy.typing import NDArray

from lightning_glassy.record.atomic import write_atomically
from lightning_glassy.record.text import csv_cell

if TYPE_CHECKING:
    import pandas
    import xarray

Columns = Mapping[str, Sequence[Any]]
"""A table in long form: the values of each column."""

_ROWS = 10_000  # rows that are converted to numbers of Python at once


def write_csv(columns: Mapping[str, NDArray[Any]], path: Path) -> Path:
    """Write a CSV file atomically. Return the path. The columns may be views of any shape, the same for all."""
    n = next(iter(columns.values())).size

    def write(file: BinaryIO) -> None:
        # The user chooses the names of groups. Quoting keeps commas and line breaks of a name inside its cell.
        writer = csv.writer(codecs.getwriter("utf-8")(file, "backslashreplace"), lineterminator="\n")
        writer.writerow(columns)
        for start in range(0, n, _ROWS):
            part = [column.flat[start : start + _ROWS].tolist() for column in columns.values()]
            cells = (map(csv_cell, cells) if isinstance(cells[0], str) else cells for cells in part)
            writer.writerows(zip(*cells, strict=True))

    return write_atomically(path, write)


def data_frame(columns: Columns) -> pandas.DataFrame:
    """Make a pandas data frame.

    Raises:
        ImportError: pandas is missing. The extra ``analysis`` installs it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_pandas() needs pandas: pip install 'lightning-glassy[analysis]'") from error
    return pandas.DataFrame(columns)


def dataset(data: Mapping[str, Any], coords: Mapping[str, Any], meta: str) -> xarray.Dataset:
    """Make an xarray dataset.

    Raises:
        ImportError: xarray is missing. The extra ``analysis`` installs it.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("to_xarray() needs xarray: pip install 'lightning-glassy[analysis]'") from error
    return xarray.Dataset(data, coords=coords, attrs={"meta": meta})
