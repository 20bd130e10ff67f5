"""What bitsandbytes' own CPU path gets wrong, as computations whose results both sides can be asked for.

    python faults.py OUT.pt        # with or without bitshard's backend installed

Each result is a tensor, or the text of the exception. bitsandbytes_test.py runs this in a process without bitshard,
computes the same with it, and says of each which of the two is right.
"""

import os
import sys

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles its torch code otherwise, for minutes

import bitsandbytes as bnb  # noqa: E402
import bitsandbytes.functional as F  # noqa: E402
import torch  # noqa: E402


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_zero() -> torch.Tensor:
    """Zeros beside a one, to 8 bits and back."""
    x = torch.zeros(256)
    x[0] = 1
    return F.dequantize_blockwise(*F.quantize_blockwise(x, blocksize=256))


def not_a_number() -> torch.Tensor:
    x = torch.ones(256)
    x[3] = torch.nan
    return F.dequantize_blockwise(*F.quantize_blockwise(x, blocksize=256))


def without_gradient() -> torch.Tensor:
    """How far Adam8bit moves parameters whose gradient is 0, beside others, in two steps."""
    p = torch.nn.Parameter(normal(8192))
    before = p.detach().clone()
    optimizer = bnb.optim.Adam8bit([p], lr=1e-3)
    for _ in range(2):
        p.grad = torch.ones(8192)
        p.grad[::2] = 0
        optimizer.step()
    return (p.detach() - before)[::2]


def rows_of_96() -> torch.Tensor:
    """A weight whose rows no block of 64 ends with, to 4 bits and back, less the weight."""
    x = normal(4, 96)
    return F.dequantize_4bit(*F.quantize_4bit(x, blocksize=64, quant_type="nf4")) - x


def one_dimension() -> torch.Tensor:
    return F.dequantize_4bit(*F.quantize_4bit(normal(128), blocksize=64, quant_type="nf4"))


def long_int8_product() -> torch.Tensor:
    """Sums above 2^24, where float32 has no odd numbers."""
    a = torch.full((1, 2001), 127, dtype=torch.int8)
    b = torch.full((1, 2001), 127, dtype=torch.int8)
    b[0, 0] = 126
    return F.int8_linear_matmul(a, b)


def int8_factor() -> torch.Tensor:
    """16129 * 127 / 127^2 in float32."""
    product = torch.tensor([[16129]], dtype=torch.int32)
    return torch.ops.bitsandbytes.int8_mm_dequant(product, torch.tensor([1.0]), torch.tensor([127.0]), torch.float32)


def int8_shape() -> torch.Tensor:
    product = torch.ones(2, 3, 4, dtype=torch.int32)
    return torch.ops.bitsandbytes.int8_mm_dequant(product, torch.ones(6), torch.ones(4))


def int8_weight_gradient() -> torch.Tensor:
    """Of a trainable Linear8bitLt with an input of three dimensions."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(16, 8, bias=False, has_fp16_weights=True)
    layer(normal(2, 3, 16)).backward(normal(2, 3, 8, seed=1))
    return layer.weight.grad


def evaluate_trainable_int8() -> torch.Tensor:
    torch.manual_seed(0)
    return bnb.nn.Linear8bitLt(16, 8, bias=False, has_fp16_weights=True).to("cpu").eval()(normal(2, 16))


def train_after_evaluation() -> torch.Tensor:
    """The gradient of a Linear4bit's input, after the layer was evaluated."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
    layer.eval()
    with torch.no_grad():
        layer(normal(2, 64))
    layer.train()
    x = normal(2, 64).requires_grad_()
    out = layer(x)
    if not out.requires_grad:
        return torch.tensor(torch.nan)
    out.backward(normal(2, 64, seed=1))
    return x.grad


def lamb_step() -> torch.Tensor:
    """How far LAMB's first step moves parameters of size 1e-2: 1 % of lr, in the direction of each gradient."""
    p = torch.nn.Parameter(normal(8192) * 1e-2)
    before = p.detach().clone()
    p.grad = normal(8192, seed=1)
    bnb.optim.LAMB([p], lr=1.0).step()
    return (p.detach() - before).abs()


def ademamix_32bit() -> torch.Tensor:
    """Parameters after three steps of AdEMAMix32bit, with schedules."""
    return _ademamix(bnb.optim.AdEMAMix32bit)


def paged_ademamix_32bit() -> torch.Tensor:
    return _ademamix(bnb.optim.PagedAdEMAMix32bit)


def ademamix() -> torch.Tensor:
    """What the two above should be."""
    return _ademamix(bnb.optim.AdEMAMix)


def _ademamix(cls) -> torch.Tensor:
    p = torch.nn.Parameter(normal(70, 90))
    optimizer = cls([p], 1e-2, alpha=4.0, t_alpha=5, t_beta3=7)
    for step in range(3):
        p.grad = normal(70, 90, seed=step + 1)
        optimizer.step()
    return p.detach()


FAULTS = (exact_zero, not_a_number, without_gradient, rows_of_96, one_dimension, long_int8_product, int8_factor,
          int8_shape, int8_weight_gradient, evaluate_trainable_int8, train_after_evaluation, lamb_step, ademamix_32bit,
          paged_ademamix_32bit, ademamix)


def compute() -> dict[str, torch.Tensor | str]:
    results = {}
    for fault in FAULTS:
        try:
            results[fault.__name__] = fault()
        except Exception as error:  # noqa: BLE001: whatever it is, it is the result
            results[fault.__name__] = f"{type(error).__name__}: {error}"
    return results


if __name__ == "__main__":
    torch.save(compute(), sys.argv[1])
