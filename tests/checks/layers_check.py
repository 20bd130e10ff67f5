#!/usr/bin/env python3
"""Every #include of a project file follows an edge of cmake/Layers.cmake; every C++ file belongs to a target.

CMake checks the targets' dependencies; an include needs no dependency to compile, so the includes are read here.
A file's layer is that of the target that lists it. Headers in internal/ are for their folder and the tests only.
"""
import pathlib
import re

import source_tree

TARGET = re.compile(r"^\s*(?:bitshard|target|add)_(cuda_library|library|binary|test|bench|sources|executable)\s*\((.*?)\)\s*$", re.M | re.S)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
LAYER = re.compile(r"^set\(BITSHARD_LAYER_(\w+) ([^)]*)\)", re.M)
SEEN_BY_NOBODY = ("tests", "bench", "examples")


def allowed_layers() -> dict[str, set[str]]:
    text = source_tree.read(pathlib.Path("cmake/Layers.cmake"))
    layers = dict(LAYER.findall(text))
    every = re.search(r"^set\(BITSHARD_LAYERS ([^)]*)\)", text, re.M).group(1)
    return {layer: set(seen.replace("${BITSHARD_LAYERS}", every).split()) for layer, seen in layers.items()}


def layers_of_files() -> dict[pathlib.Path, str]:
    """The layer of each file that a target lists."""
    layers = {}
    for lists in (*source_tree.files("CMakeLists.txt"), *source_tree.files("tests/cudahost/*.cmake")):
        text = re.sub(r"#.*", "", source_tree.read(lists))
        of_kind = {"test": "tests", "sources": lists.parts[0], "executable": lists.parts[0]}
        for kind, body in TARGET.findall(text):
            words = body.split()
            layer = words[words.index("LAYER") + 1] if "LAYER" in words else of_kind.get(kind, kind)
            for word in words:
                if word.endswith((".h", ".cc", ".cu")) and (source_tree.ROOT / lists.parent / word).is_file():
                    layers[lists.parent / word] = layer
    return layers


def main() -> None:
    allowed = allowed_layers()
    layers = layers_of_files()
    folders = {path.parts[0] for path in layers}
    problems = []
    includes = 0
    for path in source_tree.cpp_files():
        # Headers of tests and benchmarks need not be listed by their targets.
        layer = path.parts[0] if path.parts[0] in SEEN_BY_NOBODY else layers.get(path)
        if layer is None or (path not in layers and path.suffix != ".h"):
            problems.append(f"{path}: no target of a CMakeLists.txt lists it")
            continue
        for included in map(pathlib.Path, INCLUDE.findall(source_tree.read(path))):
            if included.parts[0] not in folders:
                continue
            includes += 1
            if not (source_tree.ROOT / included).is_file():
                if not (source_tree.ROOT / f"{included}.in").is_file():
                    problems.append(f"{path}: includes {included}, which does not exist")
                continue
            target = included.parts[0] if included.parts[0] in SEEN_BY_NOBODY else layers.get(included)
            if target is not None and target not in allowed[layer]:
                problems.append(f"{path} (layer {layer}): includes {included} (layer {target}); "
                                f"allowed: {' '.join(sorted(allowed[layer]))} (cmake/Layers.cmake)")
            if "internal" in included.parts and layer != "tests" and included.parts[0] != path.parts[0]:
                problems.append(f"{path}: includes {included}, which is for its own folder only")
    source_tree.report(problems, f"{includes} includes")


if __name__ == "__main__":
    main()
