"""Reads a checkpoint by docs/checkpoints.md alone, with XXH3 from the system's xxHash library, and compares every
block's bytes with what was saved."""

import argparse
import ctypes
import json
import struct
import subprocess
import tempfile
from pathlib import Path

MIB = 1 << 20


def load_xxh3():
    library = ctypes.CDLL("libxxhash.so.0")
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return lambda data: library.XXH3_64bits(data, len(data))


def read_shard(path: Path, entry: dict, manifest: dict, xxh3) -> dict[str, list[tuple[int, int, bytes]]]:
    """Section -> [(first block, end block, bytes)]."""
    data = path.read_bytes()
    body, hashes = data[: entry["body_bytes"]], data[entry["body_bytes"] :]
    chunks = [body[at : at + MIB] for at in range(0, len(body), MIB)]
    assert hashes == b"".join(struct.pack("<Q", xxh3(chunk)) for chunk in chunks), "hashes of the MiBs"
    assert f"{xxh3(hashes):016x}" == entry["checksum"], "checksum of the hashes"
    assert body[:8] == b"BITSHARD"
    version, header_bytes = struct.unpack_from("<II", body, 8)
    assert version == 1 and (16 + header_bytes) % 64 == 0
    header = json.loads(body[16 : 16 + header_bytes])
    assert header == {
        "format": "bitshard checkpoint",
        "step": manifest["step"],
        "layout": manifest["layout"]["fingerprint"],
        "file": entry["file"],
        "sections": entry["sections"],
    }
    at = 16 + header_bytes
    sections: dict[str, list[tuple[int, int, bytes]]] = {}
    for section in entry["sections"]:
        for begin, end, size in section["runs"]:
            sections.setdefault(section["name"], []).append((begin, end, body[at : at + size]))
            at += size
    assert at == len(body), "the payload ends where the body ends"
    return sections


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    args = parser.parse_args()
    xxh3 = load_xxh3()
    with tempfile.TemporaryDirectory() as name:
        printed = subprocess.run([args.tool, name], check=True, capture_output=True, text=True).stdout
        saved = {line.split()[0]: bytes.fromhex(line.split()[1]) for line in printed.splitlines()}
        assert (Path(name) / "latest").read_text() == "checkpoint-3\n"
        folder = Path(name) / "checkpoint-3"
        text = (folder / "manifest.json").read_text()
        manifest = json.loads(text)
        assert json.dumps(manifest, indent=2, ensure_ascii=False) + "\n" == text, "the canonical text"
        unsigned = json.dumps({**manifest, "checksum": ""}, indent=2, ensure_ascii=False) + "\n"
        assert f"{xxh3(unsigned.encode()):016x}" == manifest["checksum"]
        assert manifest["format_version"] == 1 and manifest["step"] == 3 and manifest["layout"]["blocks"] == 2000
        assert [entry["file"] for entry in manifest["shards"]] == ["shard-00000.bin", "shard-00001.bin"]

        runs: dict[str, list[tuple[int, int, bytes]]] = {}
        for entry in manifest["shards"]:
            for section, found in read_shard(folder / entry["file"], entry, manifest, xxh3).items():
                runs.setdefault(section, []).extend(found)
        assert sorted(runs) == sorted(saved) == ["optimizer", "parameters"]
        for section, found in runs.items():
            found.sort()
            assert [run[0] for run in found] == [0] + [run[1] for run in found[:-1]] and found[-1][1] == 2000
            assert b"".join(run[2] for run in found) == saved[section], section
    print("ok")


if __name__ == "__main__":
    main()
