#!/usr/bin/env python3
"""Kernels are launched through core/launch.h alone: no <<<...>>> in a CUDA source, which no other compiler reads."""
import re

import source_tree

COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)


def code_of(source: str) -> str:
    """The source with its comments and strings blanked, line for line."""
    return COMMENT_OR_STRING.sub(lambda match: "\n" * match.group().count("\n"), source)


def problems_of(name: str, source: str) -> list[str]:
    return [f"{name}:{number}: a launch by <<<...>>>; use core/launch.h"
            for number, line in enumerate(code_of(source).splitlines(), 1) if "<<<" in line]


def main() -> None:
    assert problems_of("x.cu", "// a<<<\n/* <<<\n*/ f<<<1, 2>>>(p);\n") == ["x.cu:3: a launch by <<<...>>>; use core/launch.h"]
    assert not problems_of("x.cu", 's("<<<"); x << y; v<v<v<int>>>();\n')
    sources = source_tree.files("*.cu", "*.cuh", "*.h", "*.cc")
    problems = [problem for path in sources for problem in problems_of(str(path), source_tree.read(path))]
    source_tree.report(problems, f"{len(sources)} sources")


if __name__ == "__main__":
    main()
