#!/usr/bin/env python3
"""Runs nvcc as given. What ptxas -v says goes into OBJECT.ptxas beside the object file, the rest to the terminal.

tests/checks/ptxas_check.py reads those files.
"""
import pathlib
import subprocess
import sys


def main() -> int:
    command = sys.argv[1:]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    kept, shown = [], []
    for line in done.stdout.splitlines():
        (kept if line.startswith("ptxas info") or "bytes spill stores" in line else shown).append(line)
    if shown:
        print("\n".join(shown), file=sys.stderr)
    if "-o" in command and done.returncode == 0:
        pathlib.Path(command[command.index("-o") + 1] + ".ptxas").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
