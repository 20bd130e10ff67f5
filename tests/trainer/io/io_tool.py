"""Runs the io_tool binary for the oracle tests and reads what it dumps."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import unittest

import numpy as np

os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

TOOL: pathlib.Path = pathlib.Path()
MODELS: pathlib.Path = pathlib.Path()


def run(*args: object) -> subprocess.CompletedProcess[str]:
    """The finished process, whatever its exit status."""
    return subprocess.run([str(TOOL), *map(str, args)], capture_output=True, text=True, timeout=300)


def check(*args: object) -> None:
    """Runs a command that must succeed."""
    done = run(*args)
    if done.returncode != 0:
        raise AssertionError(f"io_tool {args}: exit {done.returncode}: {done.stderr}")


def load_dump(folder: pathlib.Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """index.json's config, and the float32 tensors by name."""
    index = json.loads((folder / "index.json").read_text())
    data = np.fromfile(folder / "tensors.bin", "<f4")
    tensors: dict[str, np.ndarray] = {}
    at = 0
    for entry in index["tensors"]:
        count = int(np.prod(entry["shape"]))
        tensors[entry["name"]] = data[at : at + count].reshape(entry["shape"])
        at += count
    if at != data.size:
        raise AssertionError(f"{folder}: {data.size} values, the index lists {at}")
    return index.get("config", {}), tensors


def bits_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Same shape and the same float32 bits everywhere."""
    if a.dtype != np.float32 or b.dtype != np.float32 or a.shape != b.shape:
        return False
    return bool(np.array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32)))


def main() -> None:
    """Takes the tool's path and the folder of downloaded models from the command line, then runs the tests."""
    global TOOL, MODELS
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", type=pathlib.Path, required=True)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    args, rest = parser.parse_known_args()
    TOOL, MODELS = args.tool, args.models
    unittest.main(module="__main__", argv=[sys.argv[0], *rest])
