"""bitsandbytes' optimizers on bitshard's kernels: each against bitsandbytes' own torch code for the CPU, which it holds
as functions beside the operators, and in use: a small network, state dicts, transformers' Trainer."""

import copy
import math
import os
import unittest
import warnings

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles its torch code otherwise, for minutes

import bitsandbytes as bnb  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bitsandbytes.backends.cpu import ops as theirs  # noqa: E402
from bitsandbytes.functional import create_dynamic_map, create_linear_map  # noqa: E402
from torch.library import opcheck  # noqa: E402

from support import DTYPES, KernelTest, normal  # noqa: E402

# name -> betas, eps, number of states. What each class passes by default.
RULES = {
    "adam": ((0.9, 0.999, 0.0), 1e-8, 2), "lamb": ((0.9, 0.999, 0.0), 1e-8, 2), "lion": ((0.9, 0.99, 0.0), 0.0, 1),
    "momentum": ((0.9, 0.0, 0.0), 0.0, 1), "lars": ((0.9, 0.0, 0.0), 0.0, 1), "rmsprop": ((0.99, 0.0, 0.0), 1e-8, 1),
    "adagrad": ((0.0, 0.0, 0.0), 1e-10, 1), "ademamix": ((0.9, 0.999, 0.9999), 1e-8, 3),
}
LR, WD, SCALE, ALPHA = 1e-2, 0.1, 0.5, 5.0
SIZE = 1000  # three whole blocks and a part


def states_of(name: str, dtype: torch.dtype, size: int = SIZE) -> list[torch.Tensor | None]:
    count = RULES[name][2]
    first = torch.zeros((2, size) if count == 3 else size, dtype=dtype)
    return [first, torch.zeros(size, dtype=dtype) if count > 1 else None]


def call_32bit(function, name, g, p, states, step, unorm=None, max_unorm=0.0, param_norm=0.0, wd=WD):
    betas, eps, _ = RULES[name]
    function(name, g, p, *states, unorm, max_unorm, param_norm, *betas, ALPHA, eps, wd, step, LR, SCALE, False)


class State8:
    """State in 8 bits as bitsandbytes allocates it."""

    def __init__(self, name: str, qmap1: torch.Tensor, qmap2: torch.Tensor, size: int = SIZE):
        self.name, self.count, blocks = name, RULES[name][2], -(-size // 256)
        self.codes = states_of(name, torch.uint8, size)
        self.scales = [torch.zeros((2, blocks) if self.count == 3 else blocks),
                       torch.zeros(blocks) if self.count > 1 else None]
        self.maps = [qmap1, qmap2 if self.count > 1 else None]

    def call(self, function, g, p, step, wd=WD):
        betas, eps, _ = RULES[self.name]
        function(self.name, g, p, *self.codes, *betas, ALPHA, eps, step, LR, *self.maps, *self.scales, wd, SCALE, False)

    def tensors(self):
        return [t for t in (*self.codes, *self.scales) if t is not None]


class Rules(KernelTest):
    def test_32bit_state(self):
        """Parameters and state after each of 8 steps; the order of operations differs by some ulps."""
        for name in RULES:
            for dtype in DTYPES:
                ours, reference = normal(SIZE, dtype=dtype), normal(SIZE, dtype=dtype)
                state, their_state = states_of(name, torch.float32), states_of(name, torch.float32)
                for step in range(1, 9):
                    g = normal(SIZE, seed=step, dtype=dtype)
                    g[:9] = 0
                    with self.runs(optimizer_update_32bit=1):
                        call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, name, g, ours, state, step)
                    call_32bit(theirs._optimizer_update_32bit_cpu, name, g.clone(), reference, their_state, step)
                    eps = torch.finfo(dtype).eps
                    torch.testing.assert_close(ours, reference, rtol=max(eps, 2e-5), atol=max(eps * 1e-2, 2e-6))
                    for a, b in zip(state, their_state):
                        if a is not None:
                            torch.testing.assert_close(a, b, rtol=1e-3 if dtype != torch.float32 else 2e-5, atol=1e-4)
                    reference.copy_(ours)

    def test_8bit_state(self):
        """Each step from the same state: parameters within ulps, codes the same but on decision points."""
        maps = [(make(True), make(False)) for make in (create_dynamic_map, create_linear_map)]
        for name in RULES:
            if name in ("lamb", "lars"):
                continue  # test_8bit_lamb_and_lars_are_limited
            for qmap1, qmap2 in maps:
                for dtype in DTYPES:
                    p = normal(SIZE, dtype=dtype)
                    state = State8(name, qmap1, qmap2)
                    for step in range(1, 6):
                        g = normal(SIZE, seed=step, dtype=dtype)
                        reference, their_state = p.clone(), copy.deepcopy(state)
                        with self.runs(optimizer_update_8bit_blockwise=1):
                            state.call(torch.ops.bitsandbytes.optimizer_update_8bit_blockwise, g, p, step)
                        their_state.call(theirs._optimizer_update_8bit_blockwise_cpu, g.clone(), reference, step)
                        self.assert_steps_agree(p, reference, state, their_state, f"{name} {dtype} {step}")

    def assert_steps_agree(self, p, reference, state, their_state, what):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, reference, rtol=max(eps, 2e-5), atol=max(eps * 1e-2, 3e-6), msg=what)
        for ours, want in zip(state.tensors(), their_state.tensors()):
            if ours.dtype == torch.uint8:
                difference = (ours.int() - want.int()).abs()
                self.assertLess(difference.max().item(), 2, what)
                self.assertLess((difference != 0).float().mean().item(), 5e-3, what)
            else:
                torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-30, msg=what)

    def test_other_floating_point_types(self):
        """Stepped in float32 and rounded back, as there: parameters, gradients of another type, and 32-bit state."""
        f64, f32, f16 = torch.float64, torch.float32, torch.float16
        for p_dtype, g_dtype, state_dtype in ((f64, f64, f32), (f64, f16, f32), (f32, f64, f32), (f32, f32, f64)):
            ours = normal(SIZE, dtype=p_dtype)
            reference = ours.clone()
            state, their_state = states_of("adam", state_dtype), states_of("adam", state_dtype)
            for step in (1, 2):
                g = normal(SIZE, seed=step, dtype=g_dtype)
                with self.runs(optimizer_update_32bit=1):
                    call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, "adam", g, ours, state, step)
                call_32bit(theirs._optimizer_update_32bit_cpu, "adam", g, reference, their_state, step)
            self.assertEqual((ours.dtype, state[0].dtype), (p_dtype, state_dtype))
            torch.testing.assert_close(ours, reference, rtol=2e-5, atol=2e-6)
            torch.testing.assert_close(state, their_state, rtol=2e-5, atol=1e-6)
        p, state = normal(SIZE, dtype=f64), State8("adam", create_dynamic_map(True), create_dynamic_map(False))
        reference, their_state = p.clone(), copy.deepcopy(state)
        state.call(torch.ops.bitsandbytes.optimizer_update_8bit_blockwise, normal(SIZE, seed=1, dtype=f64), p, 1)
        their_state.call(theirs._optimizer_update_8bit_blockwise_cpu, normal(SIZE, seed=1, dtype=f64), reference, 1)
        torch.testing.assert_close(p, reference, rtol=2e-5, atol=3e-6)

    def test_max_unorm(self):
        """An update longer than max_unorm |p| is as long as that; unorm_vec holds the square of its length."""
        for name in ("adam", "lamb", "lars", "momentum", "rmsprop"):
            for max_unorm, limited in ((0.02, True), (1e6, False)):
                p = normal(SIZE) * 1e-2
                free, norm = p.clone(), p.norm().item()
                g, before, unorm = normal(SIZE, seed=1), p.clone(), torch.zeros(1)
                call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, name, g, free,
                           states_of(name, torch.float32), 1, wd=0.0)
                call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, name, g, p,
                           states_of(name, torch.float32), 1, unorm, max_unorm, norm, wd=0.0)
                u = ((free - before) / LR).norm().item()
                self.assertTrue(math.isclose(unorm.item(), u * u, rel_tol=1e-3), f"{name} {unorm.item()} {u * u}")
                scale = max_unorm * norm / u if limited else 1.0
                torch.testing.assert_close(p - before, (free - before) * scale, rtol=2e-3, atol=1e-8)

    def test_max_unorm_lets_zeros_move(self):
        p, g = torch.zeros(SIZE), normal(SIZE, seed=1)
        call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, "lamb", g, p, states_of("lamb", torch.float32), 1,
                   torch.zeros(1), 1.0, 0.0)
        self.assertGreater(p.abs().min().item(), 0)

    def test_8bit_lamb_and_lars_are_limited(self):
        """By their classes' default, which bitsandbytes' operator does not pass on."""
        for name, max_unorm in (("lamb", 1.0), ("lars", 0.02)):
            p = normal(SIZE) * 1e-2
            g, wide = normal(SIZE, seed=1), p.clone()
            state = State8(name, create_dynamic_map(True), create_dynamic_map(False))
            state.call(torch.ops.bitsandbytes.optimizer_update_8bit_blockwise, g, p, 1, wd=0.0)
            call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, name, g, wide, states_of(name, torch.float32), 1,
                       torch.zeros(1), max_unorm, wide.norm().item(), wd=0.0)
            torch.testing.assert_close(p, wide, rtol=1e-5, atol=1e-9)

    def test_skip_zeros_changes_nothing(self):
        """Neither here nor in bitsandbytes' code for the CPU: momentum moves elements without gradient."""
        for function in (torch.ops.bitsandbytes.optimizer_update_32bit, theirs._optimizer_update_32bit_cpu):
            results = []
            for skip_zeros in (False, True):
                p, state, g = normal(SIZE), torch.ones(SIZE), torch.zeros(SIZE)
                function("momentum", g, p, state, None, None, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 2, LR, 1.0, skip_zeros)
                results.append(p)
            self.assert_same(*results)
            self.assertFalse(torch.equal(results[0], normal(SIZE)))

    def test_strides(self):
        """State takes the parameter's strides, which bitsandbytes changes after that."""
        p = normal(4, 8, 16, 16).to(memory_format=torch.channels_last)
        plain, g = p.contiguous().flatten(), normal(4, 8, 16, 16, seed=1)
        state = [torch.zeros_like(p), torch.zeros_like(p)]
        flat_state = [torch.zeros_like(plain), torch.zeros_like(plain)]
        self.assertFalse(state[0].is_contiguous())
        call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, "adam", g, p, state, 1)
        call_32bit(torch.ops.bitsandbytes.optimizer_update_32bit, "adam", g.flatten(), plain, flat_state, 1)
        self.assert_same(p.flatten(), plain)
        for strided, flat in zip(state, flat_state):
            self.assert_same(strided.flatten(), flat)

    def test_says_what_does_not_fit(self):
        p, update = normal(8), torch.ops.bitsandbytes.optimizer_update_32bit
        with self.assertRaisesRegex(RuntimeError, "unknown optimizer 'sgd': want adam, lamb"):
            update("sgd", p, p, p, None, None, 0, 0, 0.9, 0, 0, 0, 0, 0, 1, LR, 1.0)
        with self.assertRaisesRegex(RuntimeError, "state2 is missing"):
            update("adam", p, p, p, None, None, 0, 0, 0.9, 0, 0, 0, 0, 0, 1, LR, 1.0)
        with self.assertRaisesRegex(RuntimeError, "state1 has 8 elements, want 16"):
            call_32bit(update, "ademamix", p, p, [p.clone(), p.clone()], 1)
        for dtype, name in ((torch.int32, "Int"), (torch.complex64, "ComplexFloat")):
            with self.assertRaisesRegex(RuntimeError, f"p must be a floating point tensor, got {name}"):
                call_32bit(update, "adam", p, p.to(dtype), [p.clone(), p.clone()], 1)
            with self.assertRaisesRegex(RuntimeError, f"g must be a floating point tensor, got {name}"):
                call_32bit(update, "adam", p.to(dtype), p, [p.clone(), p.clone()], 1)

    def test_pass_torchs_checks(self):
        for name in ("lion", "adam", "ademamix"):
            betas, eps, _ = RULES[name]
            args = (name, normal(300), normal(300), *states_of(name, torch.float32, 300), torch.zeros(1), 0.0, 0.0,
                    *betas, ALPHA, eps, WD, 1, LR, 1.0)
            state = State8(name, create_dynamic_map(True), create_dynamic_map(False), 300)
            args8 = (name, normal(300), normal(300), *state.codes, *betas, ALPHA, eps, 1, LR, *state.maps, *state.scales,
                     WD, 1.0)
            for op, given in ((torch.ops.bitshard.optimizer_update_32bit.default, args),
                              (torch.ops.bitshard.optimizer_update_8bit_blockwise.default, args8)):
                opcheck(op, given)
                self.assert_meta_is_real(op, given)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))


def losses(make, steps: int = 60) -> tuple[list[float], torch.nn.Module, torch.optim.Optimizer]:
    """Of a regression on 512 fixed points."""
    model, x = network(), normal(512, 64, seed=3)
    y = torch.sin(x.sum(1, keepdim=True) / 4)
    optimizer, seen = make(model.parameters()), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen, model, optimizer


class Use(KernelTest):
    def test_trains_a_network_as_torch_does(self):
        with self.runs("optimizer_update_8bit_blockwise", "optimizer_update_32bit"):
            ours, _, _ = losses(lambda p: bnb.optim.AdamW8bit(p, lr=3e-3, weight_decay=0.01))
        plain, _, _ = losses(lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.01))
        self.assertLess(ours[-1], 0.3 * ours[0])
        self.assertLess(abs(ours[-1] - plain[-1]), 0.1 * plain[0])

    def test_every_class_lowers_the_loss(self):
        optim = bnb.optim
        makers = {
            "Adam": {}, "AdamW": {}, "Lion": {"lr": 1e-3}, "LAMB": {"lr": 1e-2}, "LARS": {"lr": 1.0, "momentum": 0.9},
            "SGD": {"lr": 1e-2, "momentum": 0.9}, "RMSprop": {"lr": 1e-3}, "Adagrad": {"lr": 1e-2},
            "AdEMAMix": {"t_alpha": 50, "t_beta3": 50}, "PagedAdamW": {}, "PagedLion": {"lr": 1e-3}, "PagedAdam": {},
            "PagedAdEMAMix": {"t_alpha": 50},
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
            for name, options in makers.items():
                for bits, kernel in (("8bit", "optimizer_update_8bit_blockwise"), ("32bit", "optimizer_update_32bit")):
                    make = getattr(optim, name + bits)
                    with self.runs(kernel), self.subTest(make.__name__):
                        seen, _, _ = losses(lambda p: make(p, **options), steps=15)
                        self.assertLess(seen[-1], seen[0])

    def test_goes_on_from_a_state_dict(self):
        make = {"AdamW8bit": {}, "Lion8bit": {"lr": 1e-3}, "AdEMAMix8bit": {"t_alpha": 9}, "Adagrad8bit": {"lr": 1e-2}}
        for name, options in make.items():
            _, model, optimizer = losses(lambda p: getattr(bnb.optim, name)(p, **options), steps=3)
            twin = copy.deepcopy(model)
            second = getattr(bnb.optim, name)(twin.parameters(), **options)
            second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for m, o in ((model, optimizer), (twin, second)):
                o.zero_grad()
                m(normal(8, 64)).square().sum().backward()
                o.step()
            for a, b in zip(model.parameters(), twin.parameters()):
                self.assert_same(a.detach(), b.detach(), name)

    def test_trainer_with_paged_adamw_8bit(self):
        """transformers' Trainer, unchanged: 8-bit state for matrices, 32-bit for norms and, by its rule, embeddings."""
        import tempfile

        from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

        # The Trainer's override for embeddings would hold for any optimizer's parameter of the same number.
        self.addCleanup(bnb.optim.GlobalOptimManager.get_instance().initialize)
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                             num_attention_heads=4, num_key_value_heads=2))
        rng = np.random.default_rng(0)
        rows = [{"input_ids": ids, "labels": ids} for ids in rng.integers(0, 128, (8, 16)).tolist()]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore")
            args = TrainingArguments(output_dir=folder, optim="paged_adamw_8bit", learning_rate=1e-2, max_steps=6,
                                     per_device_train_batch_size=8, report_to=[], save_strategy="no", use_cpu=True,
                                     disable_tqdm=True, logging_steps=1)
            trainer = Trainer(model=model, args=args, train_dataset=rows)
            with self.runs("optimizer_update_8bit_blockwise", "optimizer_update_32bit"):
                trainer.train()
        seen = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        self.assertLess(seen[-1], seen[0] - 0.5)
        states = {name: trainer.optimizer.optimizer.state[p]["state1"].dtype for name, p in model.named_parameters()}
        self.assertEqual(states["model.layers.0.mlp.up_proj.weight"], torch.uint8)
        self.assertEqual(states["model.embed_tokens.weight"], torch.float32)


if __name__ == "__main__":
    unittest.main()
