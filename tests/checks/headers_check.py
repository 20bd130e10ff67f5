#!/usr/bin/env python3
"""Every header starts with a comment that says what it is for and has the guard that its path asks for; no two files of
the product define a type of one name in one namespace.

Headers called *-inl.h are included once for each SIMD target and have Highway's toggle in the guard's place. Two types of
one name make a program that is linked from both files call one's destructor for the other: the linker says nothing, and it
may only be seen without optimisation.
"""
import re

import source_tree

NOT_PRODUCT = ("tests", "bench", "examples")
# A namespace, a type with its name, or a brace.
OPENED_OR_CLOSED = re.compile(r"\bnamespace\s*([\w:]*)\s*\{|(?<!enum )\b(?:struct|class)\s+(\w+)(?:\s+final)?\s*(?::[^:;{][^;{]*)?"
                              r"\{|[{}]")


def types_of(text: str) -> set[str]:
    """Types with their namespaces, those of unnamed ones left out."""
    text = re.sub(r'//[^\n]*|"(?:[^"\\\n]|\\.)*"', "", text)
    types, opened = set(), []  # What each brace that is open belongs to: a namespace's name, or None.
    for match in OPENED_OR_CLOSED.finditer(text):
        namespace, name = match.groups()
        if match[0] == "}":
            opened = opened[:-1]
        elif namespace is not None:
            opened.append(namespace)
        else:
            if name and None not in opened and "" not in opened:
                types.add("::".join([*opened, name]))
            opened.append(None)
    return types


def double_types() -> list[str]:
    defined = {}
    for path in source_tree.cpp_files():
        if path.parts[0] not in NOT_PRODUCT and not path.name.endswith("-inl.h"):
            for name in types_of(source_tree.read(path)):
                defined.setdefault(name, []).append(str(path))
    return [f"{' and '.join(paths)} both define {name}" for name, paths in sorted(defined.items()) if len(paths) > 1]


def main() -> None:
    headers = source_tree.files("*.h")
    problems = double_types()
    for path in headers:
        text = source_tree.read(path)
        guard = "BITSHARD_" + re.sub(r"[^A-Z0-9]", "_", str(path).upper()) + "_"
        if path.name.endswith("-inl.h"):
            start = f"#if defined({guard}) == defined(HWY_TARGET_TOGGLE)\n#ifdef {guard}\n#undef {guard}\n"
        else:
            start = f"#ifndef {guard}\n#define {guard}\n"
        directives = text[text.find("\n#") + 1:]
        if not directives.startswith(start):
            problems.append(f"{path}: the first directives must be {start.splitlines()!r}")
        if not text.endswith(f"#endif  // {guard}\n"):
            problems.append(f"{path}: the last line must be '#endif  // {guard}'")
        if not text.startswith("// "):
            problems.append(f"{path}: must start with a comment that says what the header defines")
    source_tree.report(problems, f"{len(headers)} headers")


if __name__ == "__main__":
    main()
