"""torch.compile of functions that use torch.ops.bitshard.*: one graph, by way of the fake kernels and the derivatives,
with the bits that the same function has uncompiled. Backend aot_eager: what is compiled around a kernel is torch's."""

import unittest

import torch

import support
from support import DTYPES, KernelTest, normal

from numpy_reference import SIGNED, UNSIGNED  # found by way of support

ops = torch.ops.bitshard
TABLES = torch.from_numpy(SIGNED), torch.from_numpy(UNSIGNED)


class Compiled(KernelTest):
    def setUp(self):
        torch._dynamo.reset()
        self.graphs = 0

    def compiled(self, function, **options):
        """In one graph (else torch raises); self.graphs counts how often it was traced."""
        backend = torch._dynamo.lookup_backend("aot_eager")

        def counted(graph, inputs):
            self.graphs += 1
            return backend(graph, inputs)

        return torch.compile(function, backend=counted, fullgraph=True, **options)

    def test_8bit_blocks(self):
        def there_and_back(x):
            codes, absmax = ops.quantize_blockwise(x * 2, TABLES[0], 64)
            return ops.dequantize_blockwise(codes, absmax, TABLES[0], 64, x.dtype) + 1, absmax.sum()

        function = self.compiled(there_and_back)
        for dtype in DTYPES:
            x = normal(10, 70, dtype=dtype)
            with self.runs(quantize_blockwise=1, dequantize_blockwise=1):
                got = function(x)
            for a, b in zip(got, there_and_back(x)):
                self.assert_same(a, b)

    def test_a_layer_of_4_bits_trains(self):
        """Products, gradients of the input and of the bias, through both graphs."""
        packed, absmax = ops.quantize_4bit(normal(48, 64), 64, "nf4", torch.uint8)
        bias, head = normal(48, seed=2).requires_grad_(), normal(48, seed=3)

        def loss(x, bias):
            return (torch.tanh(ops.gemm_4bit(x, packed, [48, 64], absmax, 64, "nf4", bias)) @ head).square().sum()

        results = []
        for function in (self.compiled(loss), loss):
            x, b = normal(5, 64, seed=1).requires_grad_(), bias.detach().clone().requires_grad_()
            with self.runs(gemm_4bit=1, dequantize_4bit=1):
                value = function(x, b)
                value.backward()
            results.append((value.detach(), x.grad, b.grad))
        for a, b in zip(*results):
            self.assert_same(a, b)

    def test_by_table(self):
        packed, absmax = ops.quantize_4bit(normal(48, 64), 64, "nf4", torch.uint8)
        code = torch.from_numpy(support.NF4)

        def loss(x):
            return ops.gemv_4bit(x, packed, [48, 64], absmax, code, 64).square().sum()

        results = []
        for function in (self.compiled(loss), loss):
            x = normal(1, 64, seed=1).requires_grad_()
            function(x).backward()
            results.append(x.grad)
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)

    def test_free_sizes_are_traced_once(self):
        packed, absmax = ops.quantize_4bit(normal(48, 64), 64, "nf4", torch.uint8)

        def layer(x):
            codes, stats, _ = ops.int8_vectorwise_quant(ops.gemm_4bit(x, packed, [48, 64], absmax, 64, "nf4"))
            return ops.int8_vectorwise_dequant(codes, stats)

        function = self.compiled(layer, dynamic=True)
        for rows in (2, 3, 17):
            x = normal(rows, 64, seed=rows)
            self.assert_same(function(x), layer(x))
        self.assertEqual(self.graphs, 1)

    def test_sizes_that_depend_on_values(self):
        def outliers(x):
            codes, stats, columns = ops.int8_vectorwise_quant(x, 3.0)
            return codes, stats, x[:, columns] * 2

        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            function = self.compiled(outliers)
            for column in (5, 40):
                x = normal(4, 64, seed=column).clamp(-2, 2)
                x[1, column] = 9
                got = function(x)
                self.assertEqual(got[2].shape, (4, 1))
                for a, b in zip(got, outliers(x)):
                    self.assert_same(a, b)
        self.assertEqual(self.graphs, 1)

    def test_int8_products(self):
        w, weight_stats, _ = ops.int8_vectorwise_quant(normal(9, 64, seed=1))

        def product(x):
            codes, stats, _ = ops.int8_vectorwise_quant(x)
            return ops.int8_scaled_mm(codes, w, stats, weight_stats, None, torch.float32).relu()

        x = normal(6, 64)
        with self.runs(int8_scaled_mm=1):
            got = self.compiled(product)(x)
        self.assert_same(got, product(x))

    def test_optimizer_steps_write_into_their_arguments(self):
        def step(p, g, state1, state2, absmax1, absmax2):
            g = g * 0.5
            ops.optimizer_update_8bit_blockwise(
                "adam", g, p, state1, state2, 0.9, 0.999, 0.0, 0.0, 1e-8, 1, 1e-2, *TABLES, absmax1, absmax2, 0.1, 1.0)
            return p.sum()

        results = []
        for function in (self.compiled(step), step):
            tensors = [normal(5000), normal(5000, seed=1), torch.full((5000,), 127, dtype=torch.uint8),
                       torch.zeros(5000, dtype=torch.uint8), torch.zeros(20), torch.zeros(20)]
            with self.runs(optimizer_update_8bit_blockwise=1):
                total = function(*tensors)
            results.append([total, *tensors])
        for a, b in zip(*results):
            self.assert_same(a, b)
        self.assertFalse(torch.equal(results[0][1], normal(5000)))


if __name__ == "__main__":
    unittest.main()
