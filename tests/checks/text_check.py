#!/usr/bin/env python3
"""Sources and documents are ASCII with Unix line ends, no tabs (where the language has a choice), no blanks at line
ends and one newline at the end; no mark of unfinished work; no file above 1 MiB.

Strings in Python may hold other characters, for tests of text, but only visible ones.
"""
import io
import re
import tokenize

import source_tree

TEXT = ("*.h", "*.cc", "*.cu", "*.py", "*.sh", "*.md", "*.cmake", "*.txt", "*.yaml", "*.json", "*.in", ".ci/run")
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r")\b(?!\(#\d+\))")


def without_visible_strings(source: str) -> str:
    """A Python source with the visible characters of its strings replaced by question marks."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and token.string.replace("\n", "").isprintable():
            for row in range(token.start[0] - 1, token.end[0]):
                lines[row] = lines[row].encode("ascii", "replace").decode()
    return "".join(lines)


def problems_of(path: str, data: bytes) -> list[str]:
    problems = []
    if path.endswith(".py") and not data.isascii():
        data = without_visible_strings(data.decode("utf-8")).encode("utf-8")
    for number, line in enumerate(data.split(b"\n"), 1):
        where = f"{path}:{number}"
        if not line.isascii():
            problems.append(f"{where}: not ASCII; write an escape (\\u00e9) or another word")
        if line.endswith((b" ", b"\t", b"\r")):
            problems.append(f"{where}: blanks at the line's end")
        if b"\t" in line:
            problems.append(f"{where}: a tab; write spaces, or an escape")
        if UNFINISHED.search(line.decode("ascii", "replace")):
            problems.append(f"{where}: unfinished work needs an issue's number, like (#12), or must be finished")
    if data and (not data.endswith(b"\n") or data.endswith(b"\n\n")):
        problems.append(f"{path}: must end with one newline")
    return problems


def main() -> None:
    problems = []
    texts = source_tree.files(*TEXT)
    for path in texts:
        problems += problems_of(str(path), (source_tree.ROOT / path).read_bytes())
    for path in source_tree.files("*"):
        if (source_tree.ROOT / path).stat().st_size > 1 << 20:
            problems.append(f"{path}: above 1 MiB")
    source_tree.report(problems, f"{len(texts)} files")


if __name__ == "__main__":
    main()
