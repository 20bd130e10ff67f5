#!/usr/bin/env python3
"""ShellCheck finds nothing in the shell scripts, and each of them can be started."""
import os
import shutil
import subprocess
import sys

import source_tree


def main() -> None:
    scripts = [str(path) for path in source_tree.files("*.sh", ".ci/run")]
    for script in scripts:
        if not os.access(source_tree.ROOT / script, os.X_OK):
            sys.exit(f"{script}: not executable: chmod +x {script}")
    if shutil.which("shellcheck") is None:
        source_tree.skip("shellcheck is not installed: apt-get install shellcheck")
    found = subprocess.run(["shellcheck", *scripts], cwd=source_tree.ROOT, check=False).returncode
    print(f"{len(scripts)} scripts")
    sys.exit(found)


if __name__ == "__main__":
    main()
