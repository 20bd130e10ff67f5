#!/usr/bin/env python3
"""Every header starts with a comment that says what it is for and has the guard that its path asks for.

Headers called *-inl.h are included once for each SIMD target and have Highway's toggle in the guard's place.
"""
import re

import source_tree


def main() -> None:
    headers = source_tree.files("*.h")
    problems = []
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
