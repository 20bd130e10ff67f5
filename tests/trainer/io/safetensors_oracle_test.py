"""Our safetensors reader and writer against the safetensors package, in both directions."""

from __future__ import annotations

import json
import pathlib
import struct
import tempfile
import unittest

import io_tool
import numpy as np
import safetensors

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8}


def file_bytes(header: object, data: bytes) -> bytes:
    """A safetensors file with this header (an object, or raw text) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class Copies(unittest.TestCase):
    def test_a_copy_holds_every_tensor_and_the_metadata(self) -> None:
        rng = np.random.default_rng(3)
        buffers, tensors = [], {}
        for dtype, width in ELEMENT_BYTES.items():
            for i, shape in enumerate(([7, 3], [5], [], [2, 0, 4], [1, 2, 3, 4])):
                data = np.frombuffer(rng.bytes(int(np.prod(shape)) * width), np.uint8)
                buffers.append(data)  # TensorSpec holds an address only.
                tensors[f"{dtype}.{i}"] = safetensors.TensorSpec(
                    dtype=dtype, shape=shape, data_ptr=data.ctypes.data, data_len=data.nbytes)
        metadata = {"format": "pt", "note": "\u00e4\n\"quoted\"", "empty": ""}
        with tempfile.TemporaryDirectory() as folder:
            source, copy = pathlib.Path(folder) / "a.safetensors", pathlib.Path(folder) / "b.safetensors"
            source.write_bytes(bytes(safetensors.serialize(tensors, metadata)))
            io_tool.check("safetensors", source, copy)
            read_back = dict(safetensors.deserialize(copy.read_bytes()))
            original = dict(safetensors.deserialize(source.read_bytes()))
            self.assertEqual(len(read_back), 5 * len(ELEMENT_BYTES))
            self.assertEqual(read_back, original)
            with safetensors.safe_open(copy, framework="np") as opened:
                self.assertEqual(opened.metadata(), metadata)
            length = struct.unpack("<Q", copy.read_bytes()[:8])[0]
            self.assertEqual(length % 8, 0)

    def test_an_empty_file_is_copied(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, copy = pathlib.Path(folder) / "a.safetensors", pathlib.Path(folder) / "b.safetensors"
            source.write_bytes(bytes(safetensors.serialize({}, None)))
            io_tool.check("safetensors", source, copy)
            self.assertEqual(safetensors.deserialize(copy.read_bytes()), [])


class Refusals(unittest.TestCase):
    # Name -> (file, does the safetensors package refuse it too).
    CASES = {
        "empty": (b"", True),
        "only the length": (struct.pack("<Q", 2), True),
        "a length beyond the file": (struct.pack("<Q", 1 << 62) + b"{}", True),
        "a length over the limit": (struct.pack("<Q", 100_000_001) + b"{}" + b" " * 99, True),
        "no object": (file_bytes(b"[]", b""), True),
        # The format says that the header begins with "{"; the package is more patient.
        "space before the header": (file_bytes(b" {}", b""), False),
        "a hole at the start": (file_bytes({"a": entry("U8", [1], 1, 2)}, b"12"), True),
        "a hole in the middle": (
            file_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"123"), True),
        "an overlap": (file_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"123"), True),
        "bytes behind the data": (file_bytes({"a": entry("U8", [1], 0, 1)}, b"12"), True),
        "data cut short": (file_bytes({"a": entry("U8", [3], 0, 3)}, b"12"), True),
        "a shape that is too small": (file_bytes({"a": entry("F32", [1], 0, 8)}, b"12345678"), True),
        "a shape that wraps": (file_bytes({"a": entry("U8", [1 << 33, 1 << 33], 0, 0)}, b""), True),
        "a negative dimension": (file_bytes({"a": entry("U8", [-1], 0, 1)}, b"1"), True),
        "offsets in reverse": (file_bytes({"a": entry("U8", [1], 1, 0)}, b"1"), True),
        "an unknown dtype": (file_bytes({"a": entry("F31", [1], 0, 4)}, b"1234"), True),
        "a missing field": (file_bytes({"a": {"dtype": "U8", "shape": [1]}}, b"1"), True),
        "one offset": (file_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1]}}, b"1"), True),
        "metadata that is no text": (file_bytes({"__metadata__": {"a": 1}}, b""), True),
        "text behind the header": (file_bytes(b"{}x", b""), True),
        "ill-formed UTF-8": (file_bytes(b'{"__metadata__":{"a":"\xff"}}', b""), True),
        # The package keeps the last one, which hides a tensor.
        "a name twice": (
            file_bytes(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                       b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"), False),
    }

    # What the message must say, where several checks would refuse the file.
    TEXTS = {
        "data cut short": "tensor a: data_offsets: end at byte 3, but the file holds 2",
        "a shape that is too small": "tensor a: data_offsets: span 8 bytes, want 4",
        "a shape that wraps": "tensor a: shape: has more elements than any file can hold",
        "a hole in the middle": "tensor b: its data begins",
        "an overlap": "tensor b: its data begins",
        "bytes behind the data": "1 bytes stand behind the last tensor",
    }

    def test_damaged_files_are_refused_naming_the_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, copy = pathlib.Path(folder) / "bad.safetensors", pathlib.Path(folder) / "copy"
            for name, (content, package_refuses) in self.CASES.items():
                with self.subTest(name):
                    path.write_bytes(content)
                    done = io_tool.run("safetensors", path, copy)
                    self.assertEqual(done.returncode, 3, done.stderr)
                    self.assertIn(str(path), done.stderr)
                    self.assertEqual(len(done.stderr.splitlines()), 1)
                    self.assertIn(self.TEXTS.get(name, ""), done.stderr)
                    self.assertFalse(copy.exists())
                    if package_refuses:
                        with self.assertRaises(safetensors.SafetensorError):
                            safetensors.deserialize(content)


if __name__ == "__main__":
    io_tool.main()
