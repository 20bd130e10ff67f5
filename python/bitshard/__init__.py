"""bitshard's CPU kernels for Python.

    import bitshard                               # torch.ops.bitshard.quantize_4bit(...) and others
    import bitsandbytes                           # runs on them too, with or without `import bitshard`
    bitshard.kernel_calls()                       # {"quantize_4bit": 1}: what ran

Operators have bitsandbytes' names and schemas; what differs is in docs/python.md. BITSHARD_SIMD=AVX2 in the
environment makes every kernel use that target.
"""

import pathlib

import torch

from ._built_for import TORCH

if ".".join(torch.__version__.split(".")[:2]) != TORCH:
    raise ImportError(f"this bitshard was built for torch {TORCH}, and torch is {torch.__version__}: "
                      "build the wheel again (pip wheel python/ --no-deps)")
torch.ops.load_library(str(pathlib.Path(__file__).with_name("libbitshard_python.so")))

from . import _operators  # noqa: E402, F401: gives the operators their shapes and derivatives


def kernel_calls() -> dict[str, int]:
    """How often each kernel has run in this process, by operator; those that never ran are missing."""
    return torch.ops.bitshard.kernel_calls()


def simd_target() -> str:
    """The instruction set that the kernels use: "AVX2", "AVX3_DL", ..."""
    return _simd_target


# Reads BITSHARD_SIMD, so that a target that the processor lacks is refused here and not at the first kernel.
_simd_target = torch.ops.bitshard.simd_target()
