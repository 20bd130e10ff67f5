"""torch.ops.bitshard.* by itself: against NumPy, against torch in float64, and by torch's own checks of operators."""

import os
import subprocess
import sys
import unittest

import numpy as np
import torch
from torch.library import opcheck

import bitshard
import support
from support import DTYPES, F32, KernelTest, floats, normal

from numpy_reference import SIGNED, UNSIGNED  # found by way of support

ops = torch.ops.bitshard
LINEAR = np.linspace(-1, 1, 256).astype(F32)


def weight_4bit(rows: int, cols: int, kind: str = "nf4", block: int = 64):
    """A random weight as quantised: packed, absmax, and in float64."""
    packed, absmax = ops.quantize_4bit(normal(rows, cols, seed=5), block, kind, torch.uint8)
    values = support.dequantize_4bit(packed.numpy().ravel(), absmax.numpy(), kind, block, rows * cols)
    return packed, absmax, torch.from_numpy(values).double().reshape(rows, cols)


class Blockwise(KernelTest):
    def test_quantizes_every_type_at_every_block_size(self):
        for dtype in DTYPES:
            x = normal(101, 307, dtype=dtype)
            for table in (SIGNED, UNSIGNED, LINEAR):
                for block in (1, 7, 64, 100, 256, 4096, 1 << 40):
                    values = x.abs() if table is UNSIGNED else x
                    with self.runs(quantize_blockwise=1):
                        codes, absmax = ops.quantize_blockwise(values, torch.from_numpy(table), block)
                    want, scales = support.quantize_8bit(floats(values), table, min(block, x.numel()))
                    self.assert_same(codes, torch.from_numpy(want).reshape(x.shape), f"{dtype} {block}")
                    self.assert_same(absmax, torch.from_numpy(scales), f"{dtype} {block}")

    def test_dequantizes_to_every_type(self):
        codes = torch.randint(0, 256, (33, 77), dtype=torch.uint8)
        for table in (SIGNED, LINEAR):
            for block in (64, 100, 4096):
                absmax = normal(-(-codes.numel() // block), seed=1).abs()
                exact = table[codes.numpy().ravel()] * np.repeat(absmax.numpy(), block)[:codes.numel()]
                for dtype in (*DTYPES, torch.float64):
                    want = torch.from_numpy(exact).reshape(codes.shape).to(dtype)
                    args = (codes, absmax, torch.from_numpy(table), block, dtype)
                    self.assert_same(ops.dequantize_blockwise(*args), want)
                    for out in (torch.empty(33, 77, dtype=dtype), torch.empty(77, 33, dtype=dtype).t()):
                        with self.runs("dequantize_blockwise.out"):
                            ops.dequantize_blockwise.out(*args, out)
                        self.assert_same(out, want)

    def test_takes_views_and_nothing(self):
        x = normal(64, 128)
        codes, absmax = ops.quantize_blockwise(x.t(), torch.from_numpy(SIGNED), 64)
        again, scales = ops.quantize_blockwise(x.t().contiguous(), torch.from_numpy(SIGNED), 64)
        self.assert_same(codes, again)
        self.assert_same(absmax, scales)
        codes, absmax = ops.quantize_blockwise(torch.empty(0, 3), torch.from_numpy(SIGNED), 64)
        self.assertEqual((codes.shape, absmax.shape), ((0, 3), (0,)))
        back = ops.dequantize_blockwise(codes, absmax, torch.from_numpy(SIGNED), 64, torch.half)
        self.assertEqual(back.shape, (0, 3))

    def test_says_what_does_not_fit(self):
        x, table = normal(10), torch.from_numpy(SIGNED)
        with self.assertRaisesRegex(RuntimeError, "blocksize must be positive, got 0"):
            ops.quantize_blockwise(x, table, 0)
        with self.assertRaisesRegex(RuntimeError, "code table"):
            ops.quantize_blockwise(x, table.flip(0), 64)
        with self.assertRaisesRegex(RuntimeError, "absmax has 1 entries for 10 elements in blocks of 4, want 3"):
            ops.dequantize_blockwise(torch.zeros(10, dtype=torch.uint8), torch.ones(1), table, 4, torch.float32)


class Bits4(KernelTest):
    def test_quantizes_every_type_at_every_block_size(self):
        for kind in ("nf4", "fp4"):
            for dtype in DTYPES:
                for block in (32, 64, 128, 256, 512, 1024, 2048, 4096, 96):
                    x = normal(37, 113, dtype=dtype, seed=block)
                    packed, absmax = ops.quantize_4bit(x, block, kind, torch.uint8)
                    want, scales = support.quantize_4bit(floats(x), kind, block)
                    self.assert_same(packed, torch.from_numpy(want)[:, None], f"{kind} {dtype} {block}")
                    self.assert_same(absmax, torch.from_numpy(scales), f"{kind} {dtype} {block}")

    def test_stores_bytes_in_any_type(self):
        x = normal(64, 32)
        plain, _ = ops.quantize_4bit(x, 64, "nf4", torch.uint8)
        for storage in (torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float64):
            packed, absmax = ops.quantize_4bit(x, 64, "nf4", storage)
            self.assertEqual(packed.shape, (1024 // storage.itemsize, 1))
            self.assertTrue(torch.equal(packed.view(torch.uint8).ravel(), plain.ravel()))
            back = ops.dequantize_4bit(packed, absmax, 64, "nf4", x.shape, torch.float32)
            self.assert_same(back, ops.dequantize_4bit(plain, absmax, 64, "nf4", x.shape, torch.float32))
        with self.assertRaisesRegex(RuntimeError, "can't hold the 3 bytes of 5 elements"):
            ops.quantize_4bit(normal(5), 64, "nf4", torch.float32)

    def test_dequantizes_every_shape(self):
        """Also rows that no block ends with, one dimension, odd sizes, and nothing."""
        for kind in ("nf4", "fp4"):
            for shape in ((4, 96), (7,), (1, 1), (3, 5, 7), (33, 130), (0, 8), (2, 4096)):
                x = normal(*shape, seed=3)
                for block in (32, 64, 2048):
                    packed, absmax = ops.quantize_4bit(x, block, kind, torch.uint8)
                    exact = support.dequantize_4bit(packed.numpy().ravel(), absmax.numpy(), kind, block, x.numel())
                    for dtype in DTYPES:
                        want = torch.from_numpy(exact).reshape(shape).to(dtype)
                        args = (packed, absmax, block, kind, list(shape), dtype)
                        self.assert_same(ops.dequantize_4bit(*args), want, f"{kind} {shape} {block}")
                        out = torch.empty(shape, dtype=dtype)
                        ops.dequantize_4bit.out(*args, out)
                        self.assert_same(out, want)

    def test_multiplies(self):
        """Within the error of float32 sums, and one rounding to the result's type."""
        cases = ((1, 40, 64), (3, 7, 100), (5, 33, 33), (2, 1500, 1000), (9, 3, 4097))
        for rows, cols, depth in cases:
            for kind in ("nf4", "fp4"):
                packed, absmax, weight = weight_4bit(cols, depth, kind)
                bias = normal(cols, seed=6)
                for dtype in DTYPES:
                    a = normal(rows, 2, depth, seed=7, dtype=dtype)
                    with self.runs(gemm_4bit=1):
                        got = ops.gemm_4bit(a, packed, [cols, depth], absmax, 64, kind, bias.to(dtype))
                    exact = a.double() @ weight.t() + bias.to(dtype).double()
                    self.assert_product(got, exact, a.double().abs() @ weight.abs().t(), dtype)

    def assert_product(self, got, exact, magnitude, dtype):
        self.assertEqual(got.dtype, dtype)
        bound = magnitude * 2e-6 + exact.abs() * torch.finfo(dtype).eps / 2 * 1.001 + 1e-6
        self.assertLess(((got.double() - exact).abs() / bound).max().item(), 1.0)

    def test_multiplies_at_every_block_size(self):
        """Blocks within rows, as long as a row, and over several."""
        for kind, code in (("nf4", support.NF4), ("fp4", support.FP4)):
            for block in (32, 64, 128, 256, 512, 1024, 2048, 4096):
                packed, absmax, weight = weight_4bit(11, 512, kind, block)
                for dtype in DTYPES:
                    a = normal(3, 512, seed=7, dtype=dtype)
                    exact, magnitude = a.double() @ weight.t(), a.double().abs() @ weight.abs().t()
                    for got in (ops.gemm_4bit(a, packed, [11, 512], absmax, block, kind),
                                ops.gemv_4bit(a, packed, [11, 512], absmax, torch.from_numpy(code), block)):
                        self.assert_product(got, exact, magnitude, dtype)

    def test_multiplies_with_nested_scales(self):
        packed, absmax, _ = weight_4bit(48, 640)
        offset = absmax.mean()
        codes, scales = ops.quantize_blockwise(absmax - offset, torch.from_numpy(SIGNED), 256)
        nested = torch.from_numpy(SIGNED)[codes.long()] * scales.repeat_interleave(256)[:480] + offset
        a = normal(4, 640)
        args = (a, packed, [48, 640])
        got = ops.gemm_4bit(*args, scales, 64, "nf4", None, codes, torch.from_numpy(SIGNED), offset)
        self.assert_same(got, ops.gemm_4bit(*args, nested, 64, "nf4"))

    def test_multiplies_by_table(self):
        for kind, code in (("nf4", support.NF4), ("fp4", support.FP4)):
            packed, absmax, _ = weight_4bit(30, 96, kind)
            a = normal(2, 96, dtype=torch.bfloat16)
            want = ops.gemm_4bit(a, packed, [30, 96], absmax, 64, kind)
            args = (a, packed, [30, 96], absmax, torch.from_numpy(code), 64)
            self.assert_same(ops.gemv_4bit(*args), want)
            out = torch.empty(2, 30, dtype=torch.bfloat16)
            ops.gemv_4bit.out(*args, out)
            self.assert_same(out, want)

    def test_has_derivatives(self):
        packed, absmax, weight = weight_4bit(48, 64)
        offset = absmax.mean()
        codes, scales = ops.quantize_blockwise(absmax - offset, torch.from_numpy(SIGNED), 256)
        bias = normal(48, seed=2).requires_grad_()
        plain = (packed, [48, 64], absmax, 64, "nf4")
        nested = (packed, [48, 64], scales, 64, "nf4", None, codes, torch.from_numpy(SIGNED), offset)
        products = (lambda a: ops.gemm_4bit(a, *plain, bias), lambda a: ops.gemm_4bit(a, *nested),
                    lambda a: ops.gemv_4bit(a, *plain[:3], torch.from_numpy(support.NF4), 64))
        grad = normal(5, 3, 48, seed=9)
        for number, product in enumerate(products):
            a = normal(5, 3, 64, seed=8).requires_grad_()
            product(a).backward(grad)
            tolerance = 3e-2 if number == 1 else 1e-5
            torch.testing.assert_close(a.grad.double(), grad.double() @ weight, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(bias.grad, grad.sum((0, 1)))

    def test_says_what_does_not_fit(self):
        packed, absmax, _ = weight_4bit(4, 64)
        with self.assertRaisesRegex(RuntimeError, "quant_type must be 'nf4' or 'fp4', got 'af4'"):
            ops.dequantize_4bit(packed, absmax, 64, "af4", [4, 64], torch.float32)
        with self.assertRaisesRegex(RuntimeError, "128 bytes for 320 elements, want 160"):
            ops.dequantize_4bit(packed, absmax, 64, "nf4", [5, 64], torch.float32)
        with self.assertRaisesRegex(RuntimeError, "invalid blocksize 33"):
            ops.quantize_4bit(normal(66), 33, "nf4", torch.uint8)
        with self.assertRaisesRegex(RuntimeError, "A inner dim must match shapeB"):
            ops.gemm_4bit(normal(2, 32), packed, [4, 64], absmax, 64, "nf4")


class Int8(KernelTest):
    def test_multiplies_exactly(self):
        for rows, cols, depth in ((1, 1, 1), (3, 5, 33), (20, 97, 300), (2, 4, 70000)):
            a = torch.randint(-128, 128, (rows, depth), dtype=torch.int8)
            b = torch.randint(-128, 128, (cols, depth), dtype=torch.int8)
            a[0], b[0] = -128, -128
            want = (a.long() @ b.long().t()).int()
            with self.runs(int8_linear_matmul=1):
                self.assert_same(ops.int8_linear_matmul(a, b), want)
            self.assert_same(ops.int8_linear_matmul(a.reshape(1, rows, depth), b), want[None])
            out = torch.empty(cols, rows, dtype=torch.int32).t()
            with self.runs("int8_linear_matmul.out"):
                ops.int8_linear_matmul.out(a, b, out)
            self.assert_same(out, want)

    def test_quantizes_rows(self):
        for dtype in DTYPES:
            x = normal(5, 2, 300, dtype=dtype)
            q, stats, outliers = ops.int8_vectorwise_quant(x)
            rows = x.float().reshape(10, 300)
            want = torch.round(rows * (127 / rows.abs().amax(1, keepdim=True))).to(torch.int8)
            self.assert_same(q, want.reshape(x.shape))
            self.assert_same(stats, rows.abs().amax(1))
            self.assertIsNone(outliers)
            back = ops.int8_vectorwise_dequant(q.reshape(10, 300), stats)
            torch.testing.assert_close(back, want * stats[:, None] / 127, rtol=3e-7, atol=0)

    def test_sets_outlier_columns_apart(self):
        for dtype in DTYPES:
            x = normal(6, 40, dtype=dtype)
            x[2, 7], x[4, 30], x[5, 7] = 9, -6, 6.5
            q, stats, outliers = ops.int8_vectorwise_quant(x, 6.0)
            self.assertEqual(outliers.tolist(), [7, 30])
            inliers = x.float().masked_fill(x.abs() >= 6, 0)
            want = torch.round(inliers * (127 / inliers.abs().amax(1, keepdim=True)))
            want[:, [7, 30]] = 0
            self.assert_same(q, want.to(torch.int8))
            self.assert_same(stats, inliers.abs().amax(1))
            self.assertEqual(ops.int8_vectorwise_quant(x, 100.0)[2].tolist(), [])
            one_row = ops.int8_vectorwise_quant(x[2:3], 6.0)
            self.assertEqual(one_row[2].tolist(), [7])

    def test_quantizes_columns_too(self):
        x = normal(6, 40, dtype=torch.float16)
        x[2, 7] = 9
        for threshold in (0.0, 6.0):
            row_codes, col_codes, row_stats, col_stats, outliers = ops.int8_double_quant(x, threshold)
            want = ops.int8_vectorwise_quant(x, threshold)
            self.assert_same(row_codes, want[0])
            self.assert_same(row_stats, want[1])
            self.assertEqual(outliers is None, threshold == 0)
            kept = x.float().masked_fill(x.abs() >= (threshold or 1e9), 0)
            self.assert_same(col_stats, kept.abs().amax(0))
            self.assert_same(col_codes, torch.round(kept * (127 / kept.abs().amax(0))).to(torch.int8))

    def test_scales_products(self):
        """Within an ulp or two of float64, then one rounding; the factor is 1 / 127^2."""
        x, w, bias = normal(7, 128), normal(9, 128, seed=1), normal(9, seed=2)
        (qx, sx, _), (qw, sw, _) = ops.int8_vectorwise_quant(x), ops.int8_vectorwise_quant(w)
        product = ops.int8_linear_matmul(qx, qw)
        exact = product.double() * sx[:, None].double() * sw.double() / 127**2
        for dtype in (None, *DTYPES):
            for addend in (None, bias):
                want = exact + (0 if addend is None else addend.double())
                got = (ops.int8_mm_dequant(product, sx, sw, dtype, addend),
                       ops.int8_scaled_mm(qx, qw, sx, sw, addend, dtype))
                self.assert_same(*got)
                self.assertEqual(got[0].dtype, dtype or torch.float16)
                eps = torch.finfo(got[0].dtype).eps
                torch.testing.assert_close(got[0].double(), want, rtol=eps / 2 + 4e-7, atol=1e-6)
        three = ops.int8_mm_dequant(product.reshape(1, 7, 9), sx, sw)
        self.assertEqual(three.shape, (1, 7, 9))

    def test_adds_outliers_in_their_own_precision(self):
        x, w = normal(7, 128, dtype=torch.bfloat16), normal(9, 128, seed=1)
        x[:, 5] = 20
        ca, sca, outliers = ops.int8_vectorwise_quant(x, 6.0)
        cb, scb, _ = ops.int8_vectorwise_quant(w)
        with self.runs(int8_mixed_scaled_mm=1):
            got, sub = ops.int8_mixed_scaled_mm(x, ca, cb, sca, scb, outliers, None)
        self.assert_same(sub, x[:, [5]])
        weight = (cb.double() * scb[:, None].double() / 127)
        exact = (ca.double() * sca[:, None].double() / 127) @ weight.t()
        exact += x[:, [5]].double() @ weight[:, [5]].bfloat16().double().t()
        torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-5)
        none, sub = ops.int8_mixed_scaled_mm(x, ca, cb, sca, scb, None, None)
        self.assertEqual(sub.numel(), 0)
        self.assert_same(none, ops.int8_scaled_mm(ca, cb, sca, scb, None, torch.bfloat16))

    def test_says_what_does_not_fit(self):
        a, b = torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, 5, dtype=torch.int8)
        with self.assertRaisesRegex(RuntimeError, r"don't fit together: \[2, 3\] and \[4, 5\]"):
            ops.int8_linear_matmul(a, b)
        with self.assertRaisesRegex(RuntimeError, "A must be Char, got Float"):
            ops.int8_linear_matmul(a.float(), torch.zeros(4, 3, dtype=torch.int8))


def samples():
    """Operators and arguments: all but the optimizers', which are in optimizers_test.py."""
    x = normal(6, 64)
    packed, absmax, _ = weight_4bit(8, 64)
    table = torch.from_numpy(SIGNED)
    codes, scales = ops.quantize_blockwise(x, table, 64)
    nested, nested_scales = ops.quantize_blockwise(absmax, table, 256)
    q, stats, _ = ops.int8_vectorwise_quant(x)
    product = ops.int8_linear_matmul(q, q)
    grad = x.clone().requires_grad_()
    return (
        (ops.quantize_blockwise.default, (x, table, 64)),
        (ops.dequantize_blockwise.default, (codes, scales, table, 64, torch.bfloat16)),
        (ops.dequantize_blockwise.out, (codes, scales, table, 64, torch.float32, torch.empty(6, 64))),
        (ops.quantize_4bit.default, (x, 64, "fp4", torch.uint8)),
        (ops.dequantize_4bit.default, (packed, absmax, 64, "nf4", [8, 64], torch.float16)),
        (ops.dequantize_4bit.out, (packed, absmax, 64, "nf4", [8, 64], torch.float32, torch.empty(8, 64))),
        (ops.gemm_4bit.default, (grad, packed, [8, 64], absmax, 64, "nf4", normal(8).requires_grad_())),
        (ops.gemm_4bit.default, (grad, packed, [8, 64], nested_scales, 64, "nf4", None, nested, table, absmax[0])),
        (ops.gemv_4bit.default, (grad, packed, [8, 64], absmax, torch.from_numpy(support.NF4), 64)),
        (ops.gemv_4bit.out, (x, packed, [8, 64], absmax, torch.from_numpy(support.NF4), 64, torch.empty(6, 8))),
        (ops.int8_vectorwise_quant.default, (x, 0.0)),
        (ops.int8_vectorwise_quant.default, (x, 2.0)),
        (ops.int8_double_quant.default, (x, 0.0)),
        (ops.int8_double_quant.default, (x, 2.0)),
        (ops.int8_vectorwise_dequant.default, (q, stats)),
        (ops.int8_linear_matmul.default, (q, q)),
        (ops.int8_linear_matmul.out, (q, q, torch.empty(6, 6, dtype=torch.int32))),
        (ops.int8_mm_dequant.default, (product, stats, stats, torch.float32, normal(6))),
        (ops.int8_scaled_mm.default, (q, q, stats, stats)),
        (ops.int8_mixed_scaled_mm.default, (x, q, q, stats, stats)),
        (ops.int8_mixed_scaled_mm.default, (x, q, q, stats, stats, torch.tensor([3, 5]))),
        (ops.int8_mixed_scaled_mm.default, (x, q, q, stats, stats, torch.tensor([], dtype=torch.int64))),
    )


class Operators(KernelTest):
    def test_pass_torchs_checks(self):
        """Schema, fake kernel against the real one, registration of derivatives, tracing with fixed and free sizes."""
        checked = {op.name().removeprefix("bitshard::") for op, _ in samples()}
        untested = {name for name in ops.kernel_names() if not name.startswith("optimizer")} - checked
        self.assertEqual(untested, set())
        for op, args in samples():
            with self.subTest(op.name()):
                opcheck(op, args)

    def test_have_shapes_on_the_meta_device(self):
        for op, args in samples():
            with self.subTest(op.name()):
                quantizes_rows = op in (ops.int8_vectorwise_quant.default, ops.int8_double_quant.default)
                if quantizes_rows and args[1] > 0:  # How many columns have outliers is in the values, which meta tensors lack.
                    with self.assertRaisesRegex(RuntimeError, "data-dependent"):
                        op(args[0].to("meta"), 2.0)
                else:
                    self.assert_meta_is_real(op, args)

    def test_use_the_target_that_is_asked_for(self):
        self.assertIn(bitshard.simd_target(), ("AVX3_DL", "AVX3", "AVX2", "SSE4", "SSSE3", "NEON", "SVE"))
        code = "import bitshard; print(bitshard.simd_target())"
        for name in ("SSE4", "nonsense"):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                  env=dict(os.environ, BITSHARD_SIMD=name))
            if name == "SSE4" and "this processor has" not in done.stderr:
                self.assertEqual(done.stdout.strip(), name, done.stderr)
            else:
                self.assertIn("BITSHARD_SIMD: SIMD target", done.stderr)

    def test_share_torchs_libraries(self):
        """One copy each of torch, and of the thread pool that torch and we use."""
        with open("/proc/self/maps") as maps:
            mapped = {line.split()[-1] for line in maps if ".so" in line}
        for library in ("libtorch_cpu.so", "libc10.so", "libgomp"):
            found = [path for path in mapped if library in path]
            self.assertEqual(len(found), 1, found)


if __name__ == "__main__":
    unittest.main()
