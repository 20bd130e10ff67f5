"""`cmake --install` gives what an outside project needs, wherever the prefix ends up.

The prefix is renamed after the installation; the outside project lies in a scratch folder and sees nothing of this
tree.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import tempfile


def run(*command: str | pathlib.Path, expect_failure: bool = False, cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd=cwd)
    assert (done.returncode != 0) == expect_failure, f"{command}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def check_tree(prefix: pathlib.Path, source: pathlib.Path) -> None:
    assert sorted(p.name for p in (prefix / "include").iterdir()) == ["bitshard"]
    headers = [p.relative_to(prefix / "include" / "bitshard") for p in (prefix / "include").rglob("*") if p.is_file()]
    for header in ("optim/optimizer.h", "optim/rules/adamw.h", "quant/blockwise.h", "comm/mpi_communicator.h"):
        assert pathlib.Path(header) in headers, header
    for header in headers:
        assert header.suffix == ".h" and "internal" not in header.parts, header
        assert header.parts[0] in ("core", "quant", "paging", "comm", "optim"), header
        assert (source / header).read_bytes() == (prefix / "include" / "bitshard" / header).read_bytes(), header
    assert (prefix / "share" / "doc" / "bitshard" / "LICENSE").is_file()
    assert os.access(prefix / "bin" / "bitshard", os.X_OK)  # tests/trainer/run/installed_test.py runs it.
    for path in prefix.rglob("*.cmake"):
        assert str(source) not in path.read_text().replace(str(source / ".deps"), ""), f"{path} names the source tree"


def check_faults(configure: list[str | pathlib.Path], folder: pathlib.Path) -> None:
    """A LibTorch that is not there, or is another one, is found out when configuring."""
    text = run(*configure, "-B", folder / "a", "-DBITSHARD_TORCH_DIR=/nowhere", expect_failure=True)
    assert "/nowhere/include/torch/headeronly/version.h does not exist" in " ".join(text.split()), text
    other = folder / "other"
    for name in ("include/torch/headeronly/version.h", "include/ATen/ATen.h", "lib/libtorch_cpu.so", "lib/libc10.so"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text('#define TORCH_VERSION \\\n  "1.2.3"\n')
    text = run(*configure, "-B", folder / "b", f"-DBITSHARD_TORCH_DIR={other}", expect_failure=True)
    assert "is 1.2.3" in " ".join(text.split()), text


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("source", "build", "torch", "cmake", "compiler"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--launcher", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run(args.cmake, "--install", args.build, "--prefix", folder / "first")
        prefix = folder / "moved"
        (folder / "first").rename(prefix)
        check_tree(prefix, args.source)

        project = folder / "project"
        shutil.copytree(args.source / "tests" / "install" / "outside_project", project)
        configure = [args.cmake, "-G", "Ninja", "-S", project, f"-DCMAKE_PREFIX_PATH={prefix}",
                     f"-DCMAKE_CXX_COMPILER={args.compiler}", f"-DCMAKE_CXX_COMPILER_LAUNCHER={args.launcher}"]
        check_faults(configure, folder)
        build = folder / "build"
        run(*configure, "-B", build, f"-DBITSHARD_TORCH_DIR={args.torch}")
        run(args.cmake, "--build", build)
        print(run(build / "outside", cwd=folder))
    print(f"installed, found, linked and run with OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}")


if __name__ == "__main__":
    main()
