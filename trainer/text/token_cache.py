"""Writes token caches: the format of trainer/data/token_cache.h, where it is described byte by byte."""
import contextlib
import json
import os
import struct
import sys
import zlib
from array import array
from typing import Any

from .errors import StorageError, storage_error

MAGIC = b"BSTOKENS"
VERSION = 1
HEADER_BYTES = 128
TRAINED_BIT = 1 << 31


class TokenCacheWriter:
    """The file is complete after `commit`, or it is not there: it is written beside its name and renamed.

        with TokenCacheWriter(path) as writer:
            writer.add([1, 2, 3], [False, True, True])
            writer.commit(metadata={})
    """

    def __init__(self, path: str):
        assert sys.byteorder == "little" and array("I").itemsize == 4 and array("q").itemsize == 8
        self.path = path
        self.temporary = f"{path}.tmp.{os.getpid()}"
        self.boundaries = array("q", [0])
        self.num_trained = 0
        self.max_sample_tokens = 0
        self.max_token = 0
        self._crc = 0
        self._bytes = HEADER_BYTES
        try:
            self._file = open(self.temporary, "wb", buffering=1 << 20)
            self._file.write(bytes(HEADER_BYTES))
        except OSError as error:
            raise self._failure(error) from None

    def __enter__(self) -> "TokenCacheWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        # What a full disk refused is still in the buffer, and is refused once more.
        with contextlib.suppress(OSError):
            self._file.close()
        if os.path.lexists(self.temporary):
            os.unlink(self.temporary)

    def _failure(self, error: OSError) -> StorageError:
        return storage_error(self.temporary, error)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failure(error) from None
        self._crc = zlib.crc32(data, self._crc)
        self._bytes += len(data)

    @property
    def num_samples(self) -> int:
        return len(self.boundaries) - 1

    @property
    def num_tokens(self) -> int:
        return self.boundaries[-1]

    def add(self, ids: list[int], trained: list[bool]) -> None:
        self._write(array("I", [token | TRAINED_BIT if counts else token
                                for token, counts in zip(ids, trained, strict=True)]).tobytes())
        self.boundaries.append(self.num_tokens + len(ids))
        self.num_trained += sum(trained)
        self.max_sample_tokens = max(self.max_sample_tokens, len(ids))
        self.max_token = max(self.max_token, max(ids))

    def commit(self, metadata: dict[str, Any]) -> None:
        self._write(bytes(-self._bytes % 8))
        boundaries_offset = self._bytes
        self._write(self.boundaries.tobytes())
        metadata_offset = self._bytes
        self._write(json.dumps(metadata, sort_keys=True).encode("ascii"))
        header = MAGIC + struct.pack(
            "<IIqqqqqqqqqII", VERSION, HEADER_BYTES, self._bytes, self.num_samples, self.num_tokens, self.num_trained,
            self.max_token + 1, self.max_sample_tokens, boundaries_offset, metadata_offset, self._bytes - metadata_offset,
            self._crc, 0)
        header = header.ljust(HEADER_BYTES - 4, b"\0")
        try:
            self._file.seek(0)
            self._file.write(header + struct.pack("<I", zlib.crc32(header)))
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self.temporary, self.path)
            folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._failure(error) from None
