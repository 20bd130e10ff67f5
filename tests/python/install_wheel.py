"""Makes the wheel from the built library, looks at it, and installs it into a folder for the tests beside this one."""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pip(*args: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *map(str, args)]
    subprocess.run(command, check=True)


def check_library(library: pathlib.Path) -> None:
    """torch's libraries are found because `import torch` has loaded them: a path to one would bring a second copy."""
    dynamic = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True).stdout
    assert "libtorch_cpu.so" in dynamic, dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic, dynamic
    assert "libpython" not in dynamic, dynamic


def check_wheel(wheel: pathlib.Path, library: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
        assert archive.read("bitshard/libbitshard_python.so") == library.read_bytes()
        assert "bitsandbytes.backends" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Requires-Dist: torch==2." in archive.read(f"{info}/METADATA").decode()
        for source in (ROOT / "python" / "bitshard").glob("*.py"):
            assert f"bitshard/{source.name}" in names, names


def check_cmake_runs_in_an_isolated_build() -> None:
    """pip starts a build with a module that takes the installed packages out of sys.path, CMake's among them."""
    sys.path.insert(0, str(ROOT / "python"))
    import wheel_backend

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "sitecustomize.py").write_text(
            "import sys, sysconfig\nsys.path.remove(sysconfig.get_path('purelib'))\n")
        os.environ["PYTHONPATH"] = folder
        wheel_backend._run_cmake("--version")
        del os.environ["PYTHONPATH"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=pathlib.Path, required=True)
    parser.add_argument("--site", type=pathlib.Path, required=True, help="the folder to install into; emptied first")
    args = parser.parse_args()
    check_library(args.library)
    check_cmake_runs_in_an_isolated_build()
    shutil.rmtree(args.site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        pip("wheel", ROOT / "python", "--no-deps", "--no-index", "--wheel-dir", folder,
            "--config-settings", f"library={args.library}")
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        check_wheel(wheel, args.library)
        pip("install", "--target", args.site, "--no-deps", "--no-index", wheel)
    assert (args.site / "bitshard" / "libbitshard_python.so").exists()


if __name__ == "__main__":
    main()
