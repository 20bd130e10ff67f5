#!/usr/bin/env python3
"""No CUDA kernel spills registers, on any architecture that the build compiles for.

Reads what cmake/nvcc_log.py kept of ptxas -v beside each object file of a CUDA build.
"""
import argparse
import pathlib
import re

import source_tree

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
# So that an empty log is not taken for a good one.
EXPECTED = ("StepKernel", "QuantizeKernel", "Quantize4Kernel", "DequantizeKernel", "Dequantize4Kernel")


def kernels(text: str) -> list[tuple[str, str, int]]:
    """(mangled name, architecture, bytes spilled) of each kernel."""
    found, entry = [], None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            entry = match.groups()
        elif (match := SPILLS.search(line)) and entry:
            found.append((*entry, int(match[2]) + int(match[3])))
            entry = None
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--architectures", required=True, help="as in CMAKE_CUDA_ARCHITECTURES")
    args = parser.parse_args()
    wanted = {name.split("-")[0] for name in re.split(r"[;,]", args.architectures)}
    logs = sorted(args.build.rglob("*.ptxas"))
    problems, seen = [], []
    for log in logs:
        listed = kernels(log.read_text(encoding="utf-8"))
        seen += listed
        for missing in sorted(wanted - {architecture for _, architecture, _ in listed}):
            problems.append(f"{log.name}: no kernel was compiled for sm_{missing}")
        problems += [f"{log.name}: {name} spills {spilled} bytes on sm_{architecture}"
                     for name, architecture, spilled in listed if spilled > 0]
    problems += [f"no {name} among the kernels" for name in EXPECTED if not any(name in kernel for kernel, _, _ in seen)]
    source_tree.report(problems, f"{len(seen)} kernels of {len(logs)} files")


if __name__ == "__main__":
    main()
