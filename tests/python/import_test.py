"""How the backend comes into bitsandbytes: in every order of imports, with warnings as errors, with AVX512-BF16
(without it: bitsandbytes_test.py), beside versions that it does not know. Each case is a process of its own."""

import os
import subprocess
import sys
import unittest

QUANTIZE = """
import bitsandbytes.functional as F, bitshard, torch
F.quantize_4bit(torch.randn(4, 64), quant_type="nf4")
assert bitshard.kernel_calls() == {"quantize_4bit": 1}, bitshard.kernel_calls()
"""
# bitsandbytes asks its library, by ctypes, whether the processor has AVX512-BF16.
WITH_AVX512BF16 = """
import ctypes
class Library(ctypes.CDLL):
    def __getattr__(self, name):
        return (lambda: True) if name == "has_avx512bf16_cpu" else super().__getattr__(name)
ctypes.cdll._dlltype = Library
import bitsandbytes.functional
assert bitsandbytes.functional.has_avx512bf16()
"""
TRAIN_AFTER_EVALUATION = """
import bitsandbytes as bnb, bitshard, torch
torch.manual_seed(0)
layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
before = {key: value.clone() for key, value in layer.state_dict().items()}
assert not layer.support_avx512bf16_for_cpu
for asked_before in (False, True):  # True: as in a module that was pickled where bitshard was not
    layer.support_avx512bf16_for_cpu = asked_before
    with torch.no_grad():
        layer.eval()(torch.randn(2, 64))
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)
    x = torch.randn(2, 64, requires_grad=True)
    out = layer.train()(x)
    out.sum().backward()
    torch.testing.assert_close(out, x @ weight.t())
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 64))
after = layer.state_dict()
assert all(torch.equal(after[key], value) for key, value in before.items())
assert bitshard.kernel_calls()["gemm_4bit"] == 4
"""
OTHER_VERSION = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.99.1" if name == "bitsandbytes" else version(name)
"""
NO_VERSION = """
import importlib.metadata
version = importlib.metadata.version
def no_version(name):
    if name == "bitsandbytes":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = no_version
"""
OTHER_SCHEMA = """
import torch
define = torch.library.define
def defined(name, schema, *args, **kwargs):
    if name == "bitsandbytes::int8_vectorwise_dequant":
        schema = "(Tensor A, Tensor stats, int more=0) -> Tensor"
    return define(name, schema, *args, **kwargs)
torch.library.define = defined
"""
NOTHING_PATCHED = """
from bitsandbytes.autograd import _functions
from bitsandbytes.nn import modules
from bitsandbytes.optim.optimizer import Optimizer8bit
assert Optimizer8bit.load_state_dict.__globals__["__name__"] == "bitsandbytes.optim.optimizer"
assert _functions.MatMul8bitFp.__module__ == "bitsandbytes.autograd._functions"
assert modules.has_avx512bf16.__module__ == "bitsandbytes.functional"
from bitsandbytes.optim import AdEMAMix32bit
assert [base.__name__ for base in AdEMAMix32bit.__bases__] == ["Optimizer2State"]
"""
OTHER_TORCH = """
import sys, types
sys.modules["bitshard._built_for"] = types.SimpleNamespace(TORCH="1.13")
import bitshard
"""


def python(code: str, *options: str) -> subprocess.CompletedProcess:
    env = dict(os.environ, TORCHDYNAMO_DISABLE="1")
    return subprocess.run([sys.executable, *options, "-c", code], env=env, capture_output=True, text=True)


class Import(unittest.TestCase):
    def check(self, code: str, *options: str) -> str:
        done = python(code, *options)
        self.assertEqual(done.returncode, 0, f"{code}\n{done.stdout}{done.stderr}")
        return done.stderr

    def test_works_in_every_order_with_warnings_as_errors(self):
        for order in ("import bitsandbytes", "import bitshard, bitsandbytes", "import torch, bitsandbytes, bitshard"):
            with self.subTest(order):
                self.assertEqual(self.check(order + QUANTIZE, "-W", "error"), "")

    def test_keeps_the_layout_of_weights_with_avx512_bf16(self):
        self.check(WITH_AVX512BF16 + TRAIN_AFTER_EVALUATION)

    def test_patches_nothing_in_an_unknown_version(self):
        said = self.check(OTHER_VERSION + OTHER_SCHEMA + QUANTIZE + NOTHING_PATCHED)
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertIn("not tested with bitsandbytes 0.99.1", said)
        self.assertIn("left alone: int8_vectorwise_dequant", said)

    def test_patches_nothing_where_bitsandbytes_was_not_installed(self):
        """As from a source tree: there is nothing that says its version."""
        said = self.check(NO_VERSION + QUANTIZE + NOTHING_PATCHED)
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertIn("not tested with bitsandbytes of an unknown version", said)

    def test_refuses_another_torch(self):
        done = python(OTHER_TORCH)
        self.assertIn("ImportError: this bitshard was built for torch 1.13", done.stderr)


if __name__ == "__main__":
    unittest.main()
