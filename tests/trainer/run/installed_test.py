"""`cmake --install` gives a program that runs in any folder, wherever its prefix ends up, with its own text package.

The prefix is renamed after the installation. A line added to the installed package leaves a mark, so that the source
tree's can't stand in for it.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

from tiny_run import CONFIG, make_material, one_error

MARK = """
import sys
with open({mark!r}, "a") as mark:
    print(__file__, sys.executable, file=mark)
"""


class Installed:
    def __init__(self, prefix: pathlib.Path, folder: pathlib.Path) -> None:
        self.prefix, self.folder, self.mark = prefix, folder, folder / "mark"
        self.package = prefix / "share" / "bitshard" / "python" / "trainer" / "text"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        with open(self.package / "__init__.py", "a") as out:
            out.write(MARK.format(mark=str(self.mark)))
        ours = ("BITSHARD_", "PYTHON", "LD_")
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        self.env["PATH"] = f"{prefix / 'bin'}:{self.env['PATH']}"

    def run(self, *command: str | pathlib.Path, expect: int = 0, python: pathlib.Path | None = None) -> str:
        env = {**self.env, **({"BITSHARD_PYTHON": str(python)} if python else {})}
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, cwd=self.elsewhere, env=env, timeout=200)
        assert done.returncode == expect, f"{command}: exit code {done.returncode}, want {expect}\n{done.stdout}"
        return done.stdout

    def expect_mark(self) -> None:
        """The installed package ran, by the interpreter of the build, and no other did."""
        want = f"{self.package / '__init__.py'} {sys.executable}"
        assert self.mark.exists(), f"not run: {want}"
        assert set(self.mark.read_text().splitlines()) == {want}, self.mark.read_text()
        self.mark.unlink()


def check_files(prefix: pathlib.Path, source: pathlib.Path) -> None:
    for folder, below in (("trainer", "share/bitshard/python/trainer"), ("configs", "share/bitshard/configs"),
                          ("docs", "share/doc/bitshard/docs")):
        for pattern in ("text/*.py", "__init__.py", "*.yaml", "*.md"):
            for path in (source / folder).glob(pattern):
                copy = prefix / below / path.relative_to(source / folder)
                assert copy.read_bytes() == path.read_bytes(), copy
    for name in ("LICENSE", "README.md", "CHANGELOG.md"):
        assert (prefix / "share" / "doc" / "bitshard" / name).is_file(), name
    assert "launch/" not in (prefix / "bin" / "bitshard-mpirun").read_text()


def check_runs(installed: Installed) -> None:
    assert installed.run("bitshard", "--version").startswith("bitshard "), "--version"
    assert "bitshard-mpirun" in installed.run("bitshard", "--help")
    assert "  bitshard-mpirun -n N" in installed.run("bitshard-mpirun", "--help")
    folder = installed.folder
    settings = {"base_model": folder / "model", "datasets": f"[{folder}/train.jsonl]",
                "test_datasets": f"[{folder}/heldout.jsonl]", "sequence_len": 96, "output_dir": "planned/run"}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    example = installed.prefix / "share" / "bitshard" / "configs" / "quickstart.yaml"
    assert "needs most:" in installed.run("bitshard", "plan", "--config", example, "--ranks", "2", *sets)
    installed.expect_mark()
    installed.run("bitshard-mpirun", "-n", "2", "bitshard", "train", "--config", folder / "run.yaml",
                  "--set", "output_dir=trained/run", "--set", "max_steps=2")
    installed.expect_mark()
    assert (installed.elsewhere / "trained" / "run" / "adapter" / "adapter_model.safetensors").is_file()


def check_python_faults(installed: Installed) -> None:
    """A Python that can't prepare text is named, with what to do."""
    plan = ("bitshard", "plan", "--config", installed.folder / "run.yaml", "--set", "output_dir=faulty/run")
    bare = installed.folder / "bare_python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: without installed packages.
    bare.chmod(0o755)
    one_error(installed.run(*plan, expect=2, python=bare), "lacks what prepares text: tokenizers, jinja2, pyarrow;",
              "-m pip install tokenizers jinja2 pyarrow", "BITSHARD_PYTHON")
    one_error(installed.run(*plan, expect=2, python=pathlib.Path("/nowhere/python")),
              "/nowhere/python: can't be started: No such file", "BITSHARD_PYTHON")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("source", "build", "cmake"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        subprocess.run([args.cmake, "--install", args.build, "--component", "program", "--prefix", folder / "first"],
                       check=True, stdout=subprocess.DEVNULL)
        prefix = folder / "moved"
        (folder / "first").rename(prefix)
        check_files(prefix, args.source)
        make_material(folder)
        (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
        installed = Installed(prefix, folder)
        check_runs(installed)
        check_python_faults(installed)


if __name__ == "__main__":
    main()
