"""Reads the metadata of a GGUF file (versions 2 and 3, little-endian): all that a tokenizer needs, no tensors.

Source: ggml's GGUF specification.
"""
import mmap
import struct
from typing import Any

from .errors import DataError, escaped

# Type code -> struct format; 8 is a string, 9 an array.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_KEYS = 1 << 16


class _Cursor:
    """Reads values one after another; never past the end."""

    def __init__(self, data: mmap.mmap, path: str):
        self.data = data
        self.path = path
        self.at = 0

    def scalar(self, form: str) -> Any:
        end = self.at + struct.calcsize(form)
        if end > len(self.data):
            raise DataError(f"{escaped(self.path)}: cut short: a value at byte {self.at} of {len(self.data)}")
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at = end
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        if length > len(self.data) - self.at:
            raise DataError(f"{escaped(self.path)}: cut short: a string of {length} bytes at byte {self.at}")
        raw = self.data[self.at:self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{escaped(self.path)}: the string at byte {self.at - length} is no UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind != ARRAY:
            raise DataError(f"{escaped(self.path)}: unknown type of metadata value: {kind}")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element == STRING:
            if count > (len(self.data) - self.at) // 8:
                raise DataError(f"{escaped(self.path)}: cut short: an array of {count} strings at byte {self.at}")
            return [self.string() for _ in range(count)]
        if element not in SCALARS:
            raise DataError(f"{escaped(self.path)}: unknown type of array elements: {element}")
        form = SCALARS[element]
        size = struct.calcsize(form)
        if count > (len(self.data) - self.at) // size:
            raise DataError(f"{escaped(self.path)}: cut short: an array of {count} values at byte {self.at}")
        values = list(struct.unpack_from(f"<{count}{form[1]}", self.data, self.at))
        self.at += count * size
        return values


def read_metadata(path: str) -> dict[str, Any]:
    """Every key of the file with its value; arrays as lists."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, path)
            if data[:4] != b"GGUF":
                raise DataError(f"{escaped(path)}: not a GGUF file")
            cursor.at = 4
            version = cursor.scalar("<I")
            if version not in (2, 3):
                raise DataError(f"{escaped(path)}: GGUF version {version}, want 2 or 3")
            cursor.scalar("<Q")  # number of tensors
            num_keys = cursor.scalar("<Q")
            if num_keys > MAX_KEYS:
                raise DataError(f"{escaped(path)}: {num_keys} metadata keys, want at most {MAX_KEYS}")
            metadata = {}
            for _ in range(num_keys):
                key = cursor.string()
                metadata[key] = cursor.value(cursor.scalar("<I"))
            return metadata
    except (OSError, ValueError) as error:  # ValueError: mmap of an empty file
        raise DataError(f"{escaped(path)}: {error}") from None
