#!/usr/bin/env python3
"""What documents and comments name exists: files, links and their headings, scripts in command lines.

A document may name a file from the root (`comm/tree_sum.h`) or from its own folder. Names below the folders that a
run makes (build/, runs/, data/, .deps/) are not looked up, nor are patterns (*, <NAME>, {a,b}).
"""
import pathlib
import re

import source_tree

MADE_BY_RUNS = ("build", "runs", "data", ".deps")
ENDINGS = r"(?:h|cc|cu|py|sh|md|yaml|cmake|svg|json|in)"
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE_NAME = re.compile(rf"^\.?/?[\w.-]+(?:/[\w.-]+)*\.{ENDINGS}$|^[\w.-]+(?:/[\w.-]+)*/$")
COMMAND = re.compile(r"^    (?:bash )?(?:\./)?((?:launch|tests|bench)/[\w./-]+)", re.M)
DOC_IN_COMMENT = re.compile(r"\bdocs/[\w/-]+\.md\b")


def anchors(text: str) -> set[str]:
    """The headings' anchors as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def exists(name: str, folder: pathlib.Path, top: set[str]) -> bool:
    """Also true for names that are no claim about this tree: other folders' files without a path of ours."""
    path = pathlib.Path(name)
    if path.parts[0] in MADE_BY_RUNS or path.is_absolute():
        return True
    if (source_tree.ROOT / path).exists() or (source_tree.ROOT / folder / path).exists():
        return True
    return path.parts[0] not in top


def problems_of(document: pathlib.Path, top: set[str], names: set[str]) -> list[str]:
    text = source_tree.read(document)
    problems = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = source_tree.ROOT / document.parent / path if path else source_tree.ROOT / document
        if not linked.exists():
            problems.append(f"{document}: link to {path}, which does not exist")
        elif anchor and anchor not in anchors(linked.read_text(encoding="utf-8")):
            problems.append(f"{document}: link to {target}: no such heading")
    for code in CODE.findall(text):
        if not FILE_NAME.match(code):
            continue
        if not exists(code, document.parent, top):
            problems.append(f"{document}: `{code}` does not exist")
        elif "/" not in code and re.search(r"\.(h|cc|cu|py|sh)$", code) and code not in names:
            problems.append(f"{document}: `{code}`: no file has this name")
    for command in COMMAND.findall(text):
        if not (source_tree.ROOT / command).exists():
            problems.append(f"{document}: command {command} does not exist")
    return problems


def main() -> None:
    every = source_tree.files("*")
    top = {path.parts[0] for path in every if len(path.parts) > 1}
    names = {path.name for path in every}
    documents = source_tree.files("*.md")
    problems = []
    for document in documents:
        problems += problems_of(document, top, names)
    sources = source_tree.files("*.h", "*.cc", "*.cu", "*.py", "*.sh", "*.cmake", "*.yaml", "CMakeLists.txt")
    for path in sources:
        if path == pathlib.Path("tests/checks/docs_check.py"):
            continue
        for name in sorted(set(DOC_IN_COMMENT.findall(source_tree.read(path)))):
            if not (source_tree.ROOT / name).exists():
                problems.append(f"{path}: names {name}, which does not exist")
    source_tree.report(problems, f"{len(documents)} documents and {len(sources)} sources")


if __name__ == "__main__":
    main()
