"""The files of the source tree and the way in which the checks report: shared by all of them."""
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED = 77  # ctest's SKIP_RETURN_CODE


def files(*patterns: str) -> list[pathlib.Path]:
    """Files of the tree, relative to its root, that git tracks or would track, of the given glob patterns."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard",
               "--", *[f":(glob)**/{pattern}" for pattern in patterns]]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = [pathlib.Path(name) for name in sorted(set(listed.split("\0"))) if name and (ROOT / name).is_file()]
    if not found:
        sys.exit(f"no {', '.join(patterns)} in {ROOT}")
    return found


def cpp_files() -> list[pathlib.Path]:
    return files("*.h", "*.cc", "*.cu")


def read(path: pathlib.Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def report(problems: list[str], checked: str) -> None:
    """Prints what is wrong, or how much was looked at, and ends the process."""
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems in {checked}")
    sys.exit(1 if problems else 0)


def skip(reason: str) -> None:
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)
