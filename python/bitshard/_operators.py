"""Shapes and types of torch.ops.bitshard.* for tracing, and derivatives where there are any."""

import torch
from torch.library import register_autograd, register_fake

_ops = torch.ops.bitshard


def _empty(like: torch.Tensor, shape, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _blocks(elems, blocksize: int):
    return (elems + blocksize - 1) // blocksize


def _rows(tensor: torch.Tensor):
    return tensor.numel() // tensor.shape[-1]


# --- 8-bit and 4-bit blocks ---


@register_fake("bitshard::quantize_blockwise")
def _(A, code, blocksize):
    return _empty(A, A.shape, torch.uint8), _empty(A, (_blocks(A.numel(), blocksize),), torch.float32)


@register_fake("bitshard::dequantize_blockwise")
def _(A, absmax, code, blocksize, dtype):
    return _empty(A, A.shape, dtype)


@register_fake("bitshard::quantize_4bit")
def _(A, blocksize, quant_type, quant_storage):
    packed = (A.numel() + 1) // 2
    return (_empty(A, (packed // quant_storage.itemsize, 1), quant_storage),
            _empty(A, (_blocks(A.numel(), blocksize),), torch.float32))


@register_fake("bitshard::dequantize_4bit")
def _(A, absmax, blocksize, quant_type, shape, dtype):
    return _empty(A, shape, dtype)


@register_fake("bitshard::gemm_4bit")
def _(A, B, shapeB, absmax, blocksize, quant_type, bias=None, absmax_8bit=None, absmax_code=None, absmax_offset=None):
    torch._check(A.shape[-1] == shapeB[1], lambda: f"A inner dim ({A.shape[-1]}) must match shapeB ({shapeB[1]})")
    return _empty(A, (*A.shape[:-1], shapeB[0]), A.dtype)


@register_fake("bitshard::gemv_4bit")
def _(A, B, shapeB, absmax, code, blocksize):
    return _empty(A, (*A.shape[:-1], shapeB[0]), A.dtype)


# --- LLM.int8() ---


def _outlier_columns(A: torch.Tensor, threshold: float):
    if threshold <= 0:
        return None
    return A.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@register_fake("bitshard::int8_vectorwise_quant")
def _(A, threshold=0.0):
    return _empty(A, A.shape, torch.int8), _empty(A, (_rows(A),), torch.float32), _outlier_columns(A, threshold)


@register_fake("bitshard::int8_double_quant")
def _(A, threshold=0.0):
    return (_empty(A, A.shape, torch.int8), _empty(A, A.shape, torch.int8), _empty(A, (_rows(A),), torch.float32),
            _empty(A, (A.shape[-1],), torch.float32), _outlier_columns(A, threshold))


@register_fake("bitshard::int8_vectorwise_dequant")
def _(A, stats):
    return _empty(A, A.shape, torch.float32)


@register_fake("bitshard::int8_linear_matmul")
def _(A, B):
    return _empty(A, (*A.shape[:-1], B.shape[0]), torch.int32)


@register_fake("bitshard::int8_mm_dequant")
def _(A, row_stats, col_stats, dtype=None, bias=None):
    return _empty(A, A.shape, dtype or torch.float16)


@register_fake("bitshard::int8_scaled_mm")
def _(A, B, row_stats, col_stats, bias=None, dtype=None):
    return _empty(A, (*A.shape[:-1], B.shape[0]), dtype or torch.float16)


@register_fake("bitshard::int8_mixed_scaled_mm")
def _(A, CA, CB, SCA, SCB, outlier_cols=None, bias=None):
    out = _empty(A, (*CA.shape[:-1], CB.shape[0]), A.dtype)
    if outlier_cols is None:
        return out, _empty(A, (0,), A.dtype)
    return out, _empty(A, (_rows(A), outlier_cols.shape[0]), A.dtype)


# --- what writes into its arguments ---


for _name in ("dequantize_blockwise", "dequantize_4bit", "gemv_4bit", "int8_linear_matmul"):
    register_fake(f"bitshard::{_name}.out")(lambda *args, **kwargs: None)
for _name in ("optimizer_update_32bit", "optimizer_update_8bit_blockwise"):
    register_fake(f"bitshard::{_name}")(lambda *args, **kwargs: None)


# --- derivatives ---


def _weight(B, shape, absmax, blocksize: int, quant_type: str, nested, dtype) -> torch.Tensor:
    """The 4-bit weight that a product used."""
    if nested is not None:
        codes, code, offset = nested
        absmax = _ops.dequantize_blockwise(codes, absmax, code, 256, torch.float32) + offset
    return _ops.dequantize_4bit(B, absmax, blocksize, quant_type, shape, dtype)


def _gemm_context(ctx, inputs, output):
    _, B, ctx.shape, absmax, ctx.blocksize, ctx.quant_type, bias, codes, code, offset = inputs
    ctx.save_for_backward(B, absmax, codes, code, offset)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _gemm_backward(ctx, grad):
    B, absmax, *nested = ctx.saved_tensors
    grad_A = grad_bias = None
    if ctx.needs_input_grad[0]:
        nested = None if nested[0] is None else nested
        grad_A = grad @ _weight(B, ctx.shape, absmax, ctx.blocksize, ctx.quant_type, nested, grad.dtype)
    if ctx.needs_input_grad[6]:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
    return grad_A, None, None, None, None, None, grad_bias, None, None, None


def _gemv_context(ctx, inputs, output):
    _, B, ctx.shape, absmax, code, ctx.blocksize = inputs
    ctx.save_for_backward(B, absmax, code)


def _gemv_backward(ctx, grad):
    B, absmax, code = ctx.saved_tensors
    # Which of the two types the table is would have to be read from it, which tracing can't.
    elems = ctx.shape[0] * ctx.shape[1]
    packed = B.contiguous().view(torch.uint8).flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:elems]
    scales = absmax.float().flatten().repeat_interleave(ctx.blocksize)[:elems]
    weight = (code[codes.int()] * scales).reshape(ctx.shape).to(grad.dtype)
    return grad @ weight, None, None, None, None, None


register_autograd("bitshard::gemm_4bit", _gemm_backward, setup_context=_gemm_context)
register_autograd("bitshard::gemv_4bit", _gemv_backward, setup_context=_gemv_context)
