"""Makes bitshard's wheel: the build backend that pip calls (PEP 517), with nothing but Python's own library.

    pip wheel python/ --no-deps                               # builds the library with CMake first
    pip wheel python/ --no-deps --config-settings library=build/cpu/python/libbitshard_python.so

The wheel depends on the machine (Debian's libhwy and libabsl) and on torch's minor version, not on Python's.
"""

import base64
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sysconfig
import tomllib
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
LIBRARY = "libbitshard_python.so"


def _project() -> dict:
    return tomllib.loads((HERE / "pyproject.toml").read_text())["project"]


def _version() -> str:
    """Of the CMake project, so that it stands in one place."""
    return re.search(r"^project\(bitshard VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.M).group(1)


def _run_cmake(*args: str) -> None:
    """Without what pip sets for an isolated build: it hides the packages of every Python, and CMake's wheel is one."""
    in_tree = ROOT / ".deps" / "venv" / "bin" / "cmake"
    cmake = str(in_tree) if in_tree.exists() else shutil.which("cmake")
    if cmake is None:
        raise RuntimeError("cmake not found: run launch/setup.sh, or name a built library with "
                           f"--config-settings library=PATH/{LIBRARY}")
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONNOUSERSITE")}
    subprocess.run([cmake, *args], cwd=ROOT, env=env, check=True)


def _build_library() -> pathlib.Path:
    _run_cmake("--preset", "cpu")
    _run_cmake("--build", "build/cpu", "--target", "bitshard_python")
    return ROOT / "build" / "cpu" / "python" / LIBRARY


def _metadata(project: dict, version: str, torch: str) -> str:
    return (f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
            f"Summary: {project['description']}\nLicense: {project['license']['text']}\n"
            f"Requires-Python: {project['requires-python']}\nRequires-Dist: torch=={torch}.*\n")


def _entry_points(project: dict) -> str:
    groups = [f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
              for group, entries in project["entry-points"].items()]
    return "\n".join(groups)


def _contents(library: pathlib.Path, tag: str) -> dict[str, bytes]:
    """Every file of the wheel but RECORD, by its name there."""
    project, version = _project(), _version()
    built_for = library.with_name("_built_for.py").read_text()
    torch = re.search(r'^TORCH = "([\d.]+)"', built_for, re.M).group(1)
    files = {f"bitshard/{path.name}": path.read_bytes() for path in sorted((HERE / "bitshard").glob("*.py"))}
    files["bitshard/_built_for.py"] = built_for.encode()
    files[f"bitshard/{LIBRARY}"] = library.read_bytes()
    info = f"bitshard-{version}.dist-info"
    files[f"{info}/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    files[f"{info}/METADATA"] = _metadata(project, version, torch).encode()
    files[f"{info}/WHEEL"] = (f"Wheel-Version: 1.0\nGenerator: bitshard ({version})\nRoot-Is-Purelib: false\n"
                              f"Tag: {tag}\n").encode()
    files[f"{info}/entry_points.txt"] = _entry_points(project).encode()
    return files


def _record(files: dict[str, bytes], name: str) -> bytes:
    lines = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{name},,\n"]).encode()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None) -> str:
    named = (config_settings or {}).get("library")
    # pip calls from python/: a relative path is taken from the root of the sources.
    library = ROOT / named if named else _build_library()
    tag = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
    files = _contents(library, tag)
    version = _version()
    record = f"bitshard-{version}.dist-info/RECORD"
    files[record] = _record(files, record)
    name = f"bitshard-{version}-{tag}.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            # No time of day: the same sources give the same bytes.
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return name


def build_sdist(sdist_directory, config_settings=None) -> str:
    raise RuntimeError("bitshard is built from its source tree: there is no source distribution of python/ alone")
