#!/usr/bin/env python3
"""No library holds the VEX form of an AVX-VNNI instruction, which processors with AVX-512 may lack.

Debian's Highway compiles its AVX3_DL target with -mavxvnni, but does not look for AVX-VNNI when it chooses that target:
Ice Lake and Zen 4 take it and end with SIGILL at the first such instruction. g++ makes them of loops that sum products
of bytes.
"""
import argparse
import pathlib
import re
import subprocess

import source_tree

VEX_VNNI = re.compile(r"\{vex\}\s+vpdp\w+")
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")


def faults(library: pathlib.Path) -> list[str]:
    disassembly = subprocess.run(["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", library], text=True,
                                 stdout=subprocess.PIPE, check=True).stdout
    found, function, seen_target = [], "", False
    for line in disassembly.splitlines():
        if match := FUNCTION.match(line):
            function = match[1]
            seen_target = seen_target or "N_AVX3_DL" in function
        elif match := VEX_VNNI.search(line):
            found.append(f"{library.name}: {function}: {match[0]}")
    return found if seen_target else [f"{library}: no function of the target AVX3_DL"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries", nargs="+", type=pathlib.Path)
    libraries = parser.parse_args().libraries
    problems = [fault for library in libraries for fault in faults(library)]
    source_tree.report(problems, f"{len(libraries)} libraries")


if __name__ == "__main__":
    main()
