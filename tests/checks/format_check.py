#!/usr/bin/env python3
"""Every C++ and CUDA file is as clang-format 14 would write it (another version would write it otherwise)."""
import shutil
import subprocess

import source_tree


def clang_format_14() -> str:
    for name in ("clang-format-14", "clang-format"):
        path = shutil.which(name)
        if path and " 14." in subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout:
            return path
    source_tree.skip("clang-format 14 is not installed: apt-get install clang-format-14")
    raise AssertionError


def main() -> None:
    program = clang_format_14()
    files = source_tree.cpp_files()
    problems = []
    for path in files:
        wanted = subprocess.run([program, "--style=file", str(path)], cwd=source_tree.ROOT, capture_output=True,
                                text=True, check=True).stdout.splitlines()
        got = source_tree.read(path).splitlines()
        if got != wanted:
            line = next((i for i, (a, b) in enumerate(zip(got, wanted), 1) if a != b), min(len(got), len(wanted)) + 1)
            problems.append(f"{path}:{line}: run {program.rsplit('/', 1)[-1]} -i {path}")
    source_tree.report(problems, f"{len(files)} files")


if __name__ == "__main__":
    main()
