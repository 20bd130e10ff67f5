"""The backend that bitsandbytes finds (entry points of the group bitsandbytes.backends) and calls when it is imported.

It makes bitshard's kernels those of bitsandbytes' operators for the CPU. In the versions that it was tested with it
also changes what bitsandbytes computes past its operators: see _patch.
"""

import functools
import importlib.metadata
import inspect
import logging

import torch

import bitshard

from . import state_layouts

TESTED_VERSIONS = ("0.50.2",)

_log = logging.getLogger("bitshard")


def _same_schema(name: str) -> bool:
    """bitsandbytes has an operator of this name that takes and returns what ours does."""
    operator, _, overload = name.partition(".")
    try:
        theirs = getattr(getattr(torch.ops.bitsandbytes, operator), overload or "default")
    except AttributeError:
        return False
    ours = getattr(getattr(torch.ops.bitshard, operator), overload or "default")
    return str(ours._schema).removeprefix("bitshard::") == str(theirs._schema).removeprefix("bitsandbytes::")


def _version() -> str:
    """bitsandbytes has no __version__ yet when it asks for its backends."""
    try:
        return importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:  # it lies on the path without having been installed
        return "of an unknown version"


def register() -> None:
    version = _version()
    names = torch.ops.bitshard.kernel_names()
    fitting = [name for name in names if _same_schema(name)]
    torch.ops.bitshard.implement_bitsandbytes(fitting)
    if version in TESTED_VERSIONS:
        _patch()
    else:
        missing = sorted(set(names) - set(fitting))
        _log.warning("bitshard was not tested with bitsandbytes %s (but %s): %d of %d operators run on its kernels, "
                     "nothing else is changed%s", version, ", ".join(TESTED_VERSIONS), len(fitting), len(names),
                     f"; left alone: {', '.join(missing)}" if missing else "")


def _patch() -> None:
    import bitsandbytes.optim.optimizer
    from bitsandbytes.autograd import _functions
    from bitsandbytes.nn import modules
    from bitsandbytes.optim import ademamix

    # With AVX512-BF16 a Linear4bit that is evaluated repacks its weight in place, with scales in bfloat16, for a
    # product without derivatives: training after that loses the gradient of the layer's input, without a word.
    modules.has_avx512bf16 = lambda: False
    # A module that was pickled with its answer to that question asks no more.
    modules._convert_weight_packed_for_cpu = lambda weight, quant_state, block_n=32: (weight, quant_state)
    _functions.MatMul8bitFp = _MatMul8bitFor(_functions.MatMul8bitFp)
    optimizer = bitsandbytes.optim.optimizer.Optimizer8bit
    optimizer.load_state_dict = _loads_old_layouts(optimizer.load_state_dict)
    _base_on(ademamix.AdEMAMix, ademamix.AdEMAMix32bit)


def _base_on(base: type, derived: type) -> None:
    """AdEMAMix32bit, and the paged class that is derived from it, make a state of half the size that their kernel wants,
    and know no schedules. What AdEMAMix does with optim_bits=32 is right."""
    init = derived.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def init_32bit(*args, **kwargs):
        base.__init__(**signature.bind(*args, **kwargs).arguments, optim_bits=32)

    derived.__init__ = init_32bit
    derived.__bases__ = (base,)


def _loads_old_layouts(load_state_dict):
    """bitsandbytes takes states of earlier versions as if they had the blocks of this one."""

    @functools.wraps(load_state_dict)
    def load(self, state_dict, move_to_device=True):
        if all(p.device.type == "cpu" for group in self.param_groups for p in group["params"]):
            state_dict = state_layouts.upgraded(state_dict)
        return load_state_dict(self, state_dict, move_to_device)

    return load


class _MatMul8bitFor:
    """Stands in the place of bitsandbytes' MatMul8bitFp: MatMul8bit on a CPU, and what was there elsewhere."""

    def __init__(self, original):
        self.original = original

    def apply(self, A, B, out=None, bias=None, state=None):
        function = MatMul8bit if A.device.type == "cpu" else self.original
        return function.apply(A, B, out, bias, state)


class MatMul8bit(torch.autograd.Function):
    """A Linear8bitLt in training: the product with the weight that its int8 codes stand for.

    A [*, K], B [N, K] (read where the codes are to be made from it), bias [N] or None. The weight is rounded once, to
    A's type. Gradients of A, of B where has_fp16_weights keeps it trainable, and of bias.
    """

    @staticmethod
    def forward(ctx, A, B, out, bias, state):
        if state.has_fp16_weights or state.CB is None:
            keep = state.has_fp16_weights and (not state.is_training or getattr(B, "grad", None) is not None)
            if not keep or state.CB is None or state.SCB is None:
                state.reset_grads()
                # By way of float16, as when an Int8Params is made.
                state.CB, state.SCB, _ = torch.ops.bitshard.int8_vectorwise_quant(B.detach().to(torch.float16))
        ctx.codes = (state.CB, state.SCB)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(A if ctx.needs_input_grad[1] else None)
        return torch.nn.functional.linear(A, _weight(ctx.codes, A.dtype), bias)

    @staticmethod
    def backward(ctx, grad):
        (A,) = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_A = grad_B = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_A = grad @ _weight(ctx.codes, grad.dtype)
        if ctx.needs_input_grad[1]:
            grad_B = rows.t() @ A.reshape(-1, A.shape[-1])
        if ctx.needs_input_grad[3]:
            grad_bias = rows.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_A, grad_B, None, grad_bias, None


def _weight(codes, dtype: torch.dtype) -> torch.Tensor:
    CB, SCB = codes
    return torch.ops.bitshard.int8_vectorwise_dequant(CB.detach(), SCB).to(dtype)
