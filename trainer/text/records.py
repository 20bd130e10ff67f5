"""Reads data files record by record: JSON (an array, or objects one after another), JSON lines, Parquet."""
import json
import os
from typing import Any, Iterator

from .errors import DataError, escaped

Record = dict[str, Any]
SUFFIXES = (".json", ".jsonl", ".parquet")
PARQUET_ROWS_AT_A_TIME = 1024


def _object(pairs: list[tuple[str, Any]]) -> Record:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{escaped(twice)}' stands twice in one object")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse(text: bytes, where: str, line: int | None) -> Any:
    """`line`: of the whole text in its file; None: the text is the file."""
    place = where if line is None else f"{where}:{line}"
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        if line is None:
            place = f"{where}:{error.lineno}"
        raise DataError(f"{place}: column {error.colno}: {error.msg}; want JSON") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start}: no UTF-8") from None
    except RecursionError:
        raise DataError(f"{place}: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{place}: {escaped(error)}") from None


def _json_lines(file: Any, where: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield f"{where}:{number}", _parse(line, where, number)


def _json_values(path: str, where: str) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if path.endswith(".jsonl") or first == b"{":
            yield from _json_lines(file, where)
            return
        values = _parse(file.read().removeprefix(b"\xef\xbb\xbf"), where, None)
    if not isinstance(values, list):
        raise DataError(f"{where}: want a JSON array of objects, or an object a line")
    for number, value in enumerate(values, 1):
        yield f"{where}: element {number}", value


def _column_values(column: Any, where: str) -> list[Any]:
    """Errors: DataError where Python has no such value: text that is no UTF-8, a date after 9999, nanoseconds."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, LookupError) as error:
        raise DataError(f"{where}: {escaped(error)}; leave the column out, or convert it") from None


def _parquet_rows(path: str, where: str) -> Iterator[tuple[str, Any]]:
    import pyarrow  # Slow to import, and most runs read JSON.
    import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS_AT_A_TIME):
                names = batch.schema.names
                columns = [_column_values(column, f"{where}: column '{escaped(name)}' from row {number + 1} on")
                           for name, column in zip(names, batch.columns)]
                for row in zip(*columns):
                    number += 1
                    # A column of a table always has a value; null stands for a key that is not there.
                    yield f"{where}: row {number}", {key: value for key, value in zip(names, row) if value is not None}
    except pyarrow.ArrowException as error:
        raise DataError(f"{where}: {escaped(error)}") from None


def read_records(path: str) -> Iterator[tuple[str, Record]]:
    """Pairs of the record and where it stands: "data.jsonl:17", "data.json: element 17", "data.parquet: row 17"."""
    where = escaped(path, 4096)
    if not path.endswith(SUFFIXES):
        raise DataError(f"{where}: want a name that ends in {', '.join(SUFFIXES)}")
    if not os.path.isfile(path):
        raise DataError(f"{where}: " + ("not a regular file" if os.path.exists(path) else "does not exist"))
    read = _parquet_rows if path.endswith(".parquet") else _json_values
    try:
        for place, value in read(path, where):
            if not isinstance(value, dict):
                raise DataError(f"{place}: got {type(value).__name__}, want an object")
            yield place, value
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}") from None
