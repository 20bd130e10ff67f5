"""What the tests of the Python package share: a count of kernels that ran, and the formats written out in NumPy."""

import contextlib
import pathlib
import sys
import unittest

import numpy as np
import torch

import bitshard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "optim"))

F32 = np.float32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], dtype=F32)
FP4_MAGNITUDES = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], dtype=F32)
FP4 = np.concatenate([FP4_MAGNITUDES, -FP4_MAGNITUDES])
FP4_BOUNDS = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], dtype=F32)


class KernelTest(unittest.TestCase):
    """A test that can ask for our kernel to have run."""

    @contextlib.contextmanager
    def runs(self, *names: str, **times: int):
        """The kernels named run inside, and where a number is given, so often."""
        before = bitshard.kernel_calls()
        yield
        after = bitshard.kernel_calls()
        ran = {name: calls - before.get(name, 0) for name, calls in after.items() if calls != before.get(name, 0)}
        for name in names:
            self.assertIn(name, ran, f"our kernel {name} did not run, but {ran}")
        for name, wanted in times.items():
            self.assertEqual(ran.get(name, 0), wanted, f"runs of {name} among {ran}")

    def assert_meta_is_real(self, op, args) -> None:
        """On the meta device an operator returns what it does on the CPU, but for the values."""
        real = op(*args)
        meta = op(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
        real, meta = (x if isinstance(x, tuple) else (x,) for x in (real, meta))
        self.assertEqual(len(real), len(meta))
        for a, b in zip(real, meta):
            self.assertEqual(a is None, b is None)
            if a is not None:
                self.assertEqual((a.dtype, a.shape, "meta"), (b.dtype, b.shape, b.device.type))

    def assert_same(self, got: torch.Tensor, want: torch.Tensor, what: str = "") -> None:
        """The same type, shape and bits, but that all NaNs are one."""
        self.assertEqual(got.dtype, want.dtype, what)
        self.assertEqual(got.shape, want.shape, what)
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")


def floats(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().ravel()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def block_scales(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The absmax of each block, and every element over that of its block."""
    count = -(-x.size // block)
    padded = np.zeros(count * block, F32)
    padded[:x.size] = x
    absmax = np.abs(padded.reshape(count, block)).max(axis=1)
    reciprocal = np.divide(F32(1), absmax, out=np.zeros_like(absmax), where=absmax > 0)
    t = (padded.reshape(count, block) * reciprocal[:, None]).reshape(-1)[:x.size]
    return absmax, np.clip(t, F32(-1), F32(1))


def quantize_8bit(x: np.ndarray, table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    absmax, t = block_scales(x, block)
    middle = (table[:-1] + table[1:]) * F32(0.5)
    index = np.searchsorted(middle, t, side="left")
    tie = (index < 255) & (middle[np.minimum(index, 254)] == t)
    return np.where(tie & (index % 2 == 1), index + 1, index).astype(np.uint8), absmax


def quantize_4bit(x: np.ndarray, kind: str, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed codes and absmax."""
    absmax, t = block_scales(x, block)
    if kind == "nf4":
        codes = np.searchsorted((NF4[:-1] + NF4[1:]) * F32(0.5), t, side="left")
    else:
        order = np.argsort(FP4_MAGNITUDES)
        codes = order[np.searchsorted(FP4_BOUNDS, np.abs(t), side="left")] + np.where(t < 0, 8, 0)
    if codes.size % 2:
        codes = np.append(codes, 7 if kind == "nf4" else 0)
    return (codes[::2] << 4 | codes[1::2]).astype(np.uint8), absmax


def dequantize_4bit(packed: np.ndarray, absmax: np.ndarray, kind: str, block: int, n: int) -> np.ndarray:
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]
    return (NF4 if kind == "nf4" else FP4)[codes] * np.repeat(absmax, block)[:n]
