"""python -m trainer.text: see trainer/text/__init__.py. Errors go to standard output as
{"error": TEXT, "exit_code": KIND}, and the exit status is that kind."""
import argparse
import ctypes
import importlib.util
import json
import os
import signal
import sys

from .errors import ConfigError, TextError, escaped

PR_SET_PDEATHSIG = 1
PACKAGES = ("tokenizers", "jinja2", "pyarrow")


def die_with_parent(parent: int) -> None:
    """The kernel kills this process when the one that started it ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # It ended before the call.
        os._exit(1)


def read_spec():
    from .prepare import Spec
    try:
        return Spec(**json.loads(sys.stdin.readline()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the specification on standard input: {escaped(error)}") from None


def run(args: argparse.Namespace) -> None:
    try:
        if args.command == "serve":
            from .serve import serve
            serve(args.tokenizer)
        else:
            from .prepare import prepare
            prepare(read_spec())
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        raise ConfigError(f"{sys.executable} lacks what prepares text: {', '.join(missing)}; install it "
                          f"({sys.executable} -m pip install {' '.join(missing)}), or name a Python that has it in "
                          "the environment variable BITSHARD_PYTHON") from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.text", description=__doc__)
    parser.add_argument("--parent", type=int, help="end when this process, which started this one, ends")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="make a token cache; the specification is one line of JSON on standard input")
    commands.add_parser("serve", help="encode and decode lines").add_argument("--tokenizer", required=True)
    args = parser.parse_args()
    if args.parent is not None:
        die_with_parent(args.parent)
    try:
        run(args)
    except TextError as error:
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
