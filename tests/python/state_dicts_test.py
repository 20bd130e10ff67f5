"""State dicts of bitsandbytes' 8-bit optimizers: exchanged with bitsandbytes alone, and in every layout that it had."""

import copy
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import torch

import state_dict_peer
import support
from bitshard import state_layouts
from numpy_reference import SIGNED, UNSIGNED  # found by way of support
from state_dict_peer import bnb, normal, train
from support import F32, KernelTest, floats

HERE = pathlib.Path(__file__).resolve().parent
N = 5000  # a part of a block of 256 and of 2048 left over
WRAPPER = state_layouts.WRAPPER


def decode(codes, scales, table, block: int) -> np.ndarray:
    codes, scales = np.asarray(codes).ravel(), np.asarray(scales).ravel()
    return table[codes] * np.repeat(scales, block)[:codes.size]


def moment(table: np.ndarray, seed: int) -> np.ndarray:
    """As an optimizer has it: sizes that differ from place to place, and a stretch of zeros."""
    x = floats(normal(N, seed=seed)) * np.repeat(F32(10) ** np.arange(-4, 1, dtype=F32), 1000)
    x[2048:4096] = 0
    return np.abs(x) if table is UNSIGNED else x


def old_state(tables, block: int, names: str = "absmax", wrap: bool = False) -> dict:
    state, tensors = {"step": 3}, {}
    for i, table in enumerate(tables, start=1):
        codes, scales = support.quantize_8bit(moment(table, i), table, block)
        tensors |= {f"state{i}": torch.from_numpy(codes), f"qmap{i}": torch.from_numpy(table),
                    f"{names}{i}": torch.from_numpy(scales)}
        if names == "max":
            tensors[f"new_max{i}"] = torch.zeros(1)
    return state | ({WRAPPER: tensors} if wrap else tensors)


def load(name: str, state: dict, device: str = "cpu", **options):
    p = torch.nn.Parameter(normal(N).to(device))
    optimizer = getattr(bnb.optim, name)([p], lr=1e-2, **options)
    state_dict = optimizer.state_dict()
    state_dict["state"] = {0: state}
    optimizer.load_state_dict(state_dict)
    return p, optimizer, optimizer.state[p]


class Layouts(KernelTest):
    def check_moment(self, state: dict, i: int, table: np.ndarray, values: np.ndarray) -> None:
        codes, scales = support.quantize_8bit(values, table, 256)
        self.assert_same(state[f"state{i}"], torch.from_numpy(codes), f"state{i}")
        self.assert_same(state[f"absmax{i}"], torch.from_numpy(scales), f"absmax{i}")

    def check_steps(self, name: str, p, optimizer, state: dict, tables) -> None:
        """The next step is that of 32-bit state with the values that the codes stand for."""
        before = {"step": state["step"]}
        for i, table in enumerate(tables, start=1):
            before[f"state{i}"] = torch.from_numpy(decode(state[f"state{i}"], state[f"absmax{i}"], table, 256))
        wide, wide_optimizer, _ = load(name.removesuffix("8bit"), before, optim_bits=32)
        for parameter in (p, wide):
            parameter.grad = normal(N, seed=9)
        with self.runs(optimizer_update_8bit_blockwise=1):
            optimizer.step()
        wide_optimizer.step()
        torch.testing.assert_close(p, wide, rtol=1e-6, atol=1e-7)
        self.assertEqual(state["step"], 4)

    def check_old(self, block: int, names: str) -> None:
        for name, tables in (("AdamW8bit", (SIGNED, UNSIGNED)), ("Lion8bit", (SIGNED,))):
            for wrap in (False, True):
                with self.subTest(name=name, wrap=wrap):
                    saved = old_state(tables, block, names, wrap)
                    kept = copy.deepcopy(saved)
                    with self.runs(dequantize_blockwise=len(tables), quantize_blockwise=len(tables)):
                        p, optimizer, state = load(name, saved)
                    for i, table in enumerate(tables, start=1):
                        tensors = kept.get(WRAPPER, kept)
                        values = decode(tensors[f"state{i}"], tensors[f"{names}{i}"], table, block)
                        self.check_moment(state, i, table, values)
                    self.assertFalse([key for key in state if key.startswith(("max", "new_max"))])
                    tensors = saved.get(WRAPPER, saved)
                    for key, value in kept.get(WRAPPER, kept).items():
                        torch.testing.assert_close(tensors[key], value, rtol=0, atol=0)
                    self.check_steps(name, p, optimizer, state, tables)

    def test_blocks_of_2048(self):
        """bitsandbytes before 0.44."""
        self.check_old(2048, "absmax")

    def test_one_scale_a_tensor(self):
        """bitsandbytes before 0.44 with block_wise=False."""
        self.check_old(N, "max")

    def test_flat_and_wrapped_states_of_now_are_taken_as_they_are(self):
        for wrap in (False, True):
            saved = old_state((SIGNED, UNSIGNED), 256, wrap=wrap)
            with self.runs(dequantize_blockwise=0, quantize_blockwise=0):
                _, _, state = load("Adam8bit", saved)
            for key, value in old_state((SIGNED, UNSIGNED), 256).items():
                if key != "step":
                    self.assert_same(state[key], value, key)

    def test_ademamix_as_cuda_leaves_it(self):
        """There the second row of scales begins where the first one's part of a block has its own."""
        fast, slow = moment(SIGNED, 1), moment(SIGNED, 3)
        (codes1, scales1), (codes3, scales3) = (support.quantize_8bit(x, SIGNED, 256) for x in (fast, slow))
        saved = old_state((SIGNED, UNSIGNED), 256)
        saved["state1"] = torch.from_numpy(np.stack([codes1, codes3]))
        rows = torch.from_numpy(np.stack([scales1, scales3]))
        written_early = torch.zeros(40)
        written_early[:20] = rows[0]
        written_early[19:39] = rows[1]
        for scales in (rows, written_early.reshape(2, 20)):
            _, _, state = load("AdEMAMix8bit", saved | {"absmax1": scales})
            self.assert_same(state["absmax1"][1], rows[1])
            self.assert_same(state["absmax1"][0, :19], rows[0, :19])
            self.assert_same(state["state1"], saved["state1"])
        zero = slow.copy()
        zero[19 * 256:] = 0  # the last scale is 0, and rightly
        codes3, scales3 = support.quantize_8bit(zero, SIGNED, 256)
        rows = torch.from_numpy(np.stack([scales1, scales3]))
        saved["state1"] = torch.from_numpy(np.stack([codes1, codes3]))
        self.assert_same(load("AdEMAMix8bit", saved | {"absmax1": rows})[2]["absmax1"], rows)

    def test_every_code_of_a_block_of_zeros(self):
        """Written by bitsandbytes' CUDA kernels (0 and 255), its torch code (127) and its CPU library (131)."""
        moved = []
        for code in (0, 127, 131, 255):
            saved = old_state((SIGNED, UNSIGNED), 256)
            for i in (1, 2):
                saved[f"state{i}"][:] = code
                saved[f"absmax{i}"][:] = 0
            p, optimizer, _ = load("AdamW8bit", saved)
            p.grad = normal(N, seed=9)
            optimizer.step()
            moved.append(p.detach())
        for p in moved[1:]:
            self.assert_same(p, moved[0])

    def test_says_what_it_cannot_load(self):
        saved = old_state((SIGNED, UNSIGNED), 2048)
        want = "parameter 0: absmax2 has 5 scales for 5000 elements; want 20 .* or 3 .*before 0.44"
        with self.assertRaisesRegex(ValueError, want):
            load("AdamW8bit", saved | {"absmax2": torch.zeros(5)})
        del saved["absmax1"]
        with self.assertRaisesRegex(ValueError, "parameter 0: state1 is 8-bit codes, and there is no absmax1 or max1"):
            load("AdamW8bit", saved)
        with self.assertRaisesRegex(ValueError, "no qmap1 to decode"):
            load("AdamW8bit", {"step": 1, "state1": saved["state1"], "absmax1": torch.zeros(20)})

    def test_leaves_other_devices_to_bitsandbytes(self):
        _, _, state = load("Lion8bit", old_state((SIGNED,), 2048), device="meta")
        self.assertEqual(state["absmax1"].shape, (3,))


class Exchange(KernelTest):
    CASES = {"AdamW8bit": {"lr": 1e-2}, "Lion8bit": {"lr": 1e-3}, "Adagrad8bit": {"lr": 1e-2},
             "AdEMAMix8bit": {"lr": 1e-2, "t_alpha": 9}, "LARS": {"lr": 1.0, "momentum": 0.9}}

    def alone(self, jobs: list[dict]) -> list[dict]:
        """Of a process without bitshard."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [pathlib.Path(folder) / name for name in ("jobs.pt", "out.pt")]
            torch.save(jobs, paths[0])
            env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            subprocess.run([sys.executable, HERE / "state_dict_peer.py", *paths], env=env, check=True)
            return torch.load(paths[1], weights_only=False)

    def assert_same_layout(self, ours: dict, theirs: dict, what: str) -> None:
        self.assertEqual(list(ours["state"]), list(theirs["state"]), what)
        for key, state in ours["state"].items():
            other = theirs["state"][key]
            self.assertEqual(state["step"], other["step"])
            self.assertEqual({name: (t.dtype, t.shape) for name, t in state[WRAPPER].items()},
                             {name: (t.dtype, t.shape) for name, t in other[WRAPPER].items()}, what)
        self.assertEqual(ours["param_groups"], theirs["param_groups"])

    def assert_near(self, a: dict, b: dict, what: str) -> None:
        """Within a tenth of the way that parameters went: its look-up has no code for small values (docs/python.md)."""
        for p, q, shape in zip(a["parameters"], b["parameters"], state_dict_peer.SHAPES):
            way = (p - normal(*shape)).abs().mean()
            self.assertLess(((p - q).abs().mean() / way).item(), 0.1, what)

    def test_goes_on_from_a_state_dict_of_the_other(self):
        jobs = [{"name": name, "options": options} for name, options in self.CASES.items()]
        ours = [train(**job, steps=range(4)) for job in jobs]
        theirs = self.alone([job | {"steps": range(4)} for job in jobs])
        there = self.alone([job | {"steps": range(4, 8), "start": start} for job, start in zip(jobs, ours)])
        for job, start, other, ended_there in zip(jobs, ours, theirs, there):
            name = job["name"]
            self.assert_same_layout(start["state_dict"], other["state_dict"], name)
            whole = train(**job, steps=range(8))
            kernel = "optimizer_update_8bit_blockwise" if name.endswith("8bit") else "optimizer_update_32bit"
            with self.runs(kernel):
                ended_here = train(**job, steps=range(4, 8), start=other)
            self.assert_near(whole, ended_here, f"{name}: there, then here")
            self.assert_near(whole, ended_there, f"{name}: here, then there")
            self.assert_same_layout(ended_here["state_dict"], ended_there["state_dict"], name)


if __name__ == "__main__":
    unittest.main()
