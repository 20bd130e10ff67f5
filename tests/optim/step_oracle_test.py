"""Optimizer steps, bit for bit against the NumPy reference on every SIMD target; and against torch and bitsandbytes."""
import argparse
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import torch

from numpy_reference import BLOCK, Reference

N = 1000  # three whole blocks and a part
CASES = [(rule, bits, wd) for rule in ("adam", "adamw", "lion") for bits in (8, 32) for wd in (0.0, 0.1)]
LR, BETAS, EPS, SCALE = 1e-2, (0.9, 0.99), 1e-8, 0.5


def targets(tool: str) -> list[str]:
    """The SIMD targets of this processor, from the message about one that does not exist."""
    names = []
    for name in ("AVX3_DL", "AVX3", "AVX2", "SSE4", "SSSE3", "NEON", "SVE"):
        if subprocess.run([tool, "/tmp/none", "rule=none"], capture_output=True,
                          env=dict(os.environ, BITSHARD_SIMD=name)).returncode != 2:
            names.append(name)
    assert names
    return names


def gradients(steps: int) -> np.ndarray:
    """Ordinary ones, and what breaks things: zeros, a block of zeros, denormals, huge and tiny, sign changes."""
    rng = np.random.default_rng(7)
    g = rng.standard_normal((steps, N)).astype(np.float32)
    g[:, :32] = 0
    g[: steps // 2, BLOCK:2 * BLOCK] = 0
    g[:, 40:60] *= np.float32(1e-20)
    g[:, 60:70] *= np.float32(1e15)
    g[:, 70:80] = np.float32(1e-41)
    g[::2, 80:100] *= np.float32(-0.0)
    g[:, 2 * BLOCK:2 * BLOCK + 200] *= np.float32(1e-18)
    return g


class Tool:
    def __init__(self, path: str, folder: str) -> None:
        self.path, self.prefix = path, str(pathlib.Path(folder) / "step")

    def run(self, rule: str, bits: int, p: np.ndarray, g: np.ndarray, wd: float, scale: float, simd: str = "",
            lr: float = LR, eps: float = EPS, types: tuple[str, str] = ("float32", "float32"),
            mode: str = "nearest") -> dict:
        p.astype(np.float32).tofile(self.prefix + ".p")
        g.tofile(self.prefix + ".g")
        settings = {"rule": f"{rule}_{bits}bit", "steps": len(g), "n": p.size, "lr": lr, "beta1": BETAS[0],
                    "beta2": BETAS[1], "eps": eps, "wd": wd, "scale": scale, "types": ",".join(types), "mode": mode}
        subprocess.run([self.path, self.prefix, *(f"{key}={value}" for key, value in settings.items())], check=True,
                       stdout=subprocess.DEVNULL, env=dict(os.environ, **({"BITSHARD_SIMD": simd} if simd else {})))
        raw = np.fromfile(self.prefix + ".out", np.uint8)
        blocks, at, out = (p.size + BLOCK - 1) // BLOCK, 0, {}
        parts = [("p", np.float32, p.size)]
        for state in ("m",) if rule == "lion" else ("m", "v"):
            parts += ([(state, np.uint8, p.size), (state + "a", np.float32, blocks)] if bits == 8 else
                      [(state, np.float32, p.size)])
        if mode == "master":
            parts.append(("master", np.float32, p.size))
        for name, dtype, count in parts:
            size = count * np.dtype(dtype).itemsize
            out[name] = raw[at:at + size].view(dtype)
            at += size
        assert at == raw.size
        return out


def same_bits(what: str, a: np.ndarray, b: np.ndarray) -> None:
    a, b = (x.view(np.uint32) if x.dtype == np.float32 else x for x in (a, b))
    bad = np.flatnonzero(a != b)
    assert bad.size == 0, f"{what}: {bad.size} differ, first at {bad[0]}: {a[bad[0]]:#x} and {b[bad[0]]:#x}"


def check_reference(tool: Tool, simd: str) -> None:
    p = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    g = gradients(200)
    for rule, bits, wd in CASES:
        ours = tool.run(rule, bits, p, g, wd, SCALE, simd)
        want = Reference(rule, bits, p, LR, BETAS, EPS, wd)
        for row in g:
            want.step(row, SCALE)
        what = f"{simd} {rule} {bits}-bit wd {wd}"
        same_bits(what + " parameters", ours["p"], want.p)
        if bits == 8:
            same_bits(what + " codes of m", ours["m"], want.m[0])
            same_bits(what + " absmax of m", ours["ma"], want.m[1])
            if rule != "lion":
                same_bits(what + " codes of v", ours["v"], want.v[0])
                same_bits(what + " absmax of v", ours["va"], want.v[1])
        else:
            same_bits(what + " m", ours["m"], want.m)
            if rule != "lion":
                same_bits(what + " v", ours["v"], want.v)
    print(f"{simd}: {len(CASES)} cases, {len(g)} steps of {N} elements, bits equal")


def check_types(tool: Tool) -> None:
    """Narrow parameters and gradients, master weights, stochastic rounding."""
    p = np.random.default_rng(4).standard_normal(N).astype(np.float32)
    g = np.clip(gradients(20), -6e4, 6e4)
    names = ("float32", "bfloat16", "float16")
    cases = [(a, b, "nearest") for a in names for b in names] + [("bfloat16", b, "stochastic") for b in names]
    cases += [("bfloat16", "bfloat16", "master"), ("float16", "float16", "master")]
    for rule in ("adam", "adamw", "lion"):
        for bits in (8, 32):
            for p_type, g_type, mode in cases:
                ours = tool.run(rule, bits, p, g, 0.1, SCALE, types=(p_type, g_type), mode=mode)
                want = Reference(rule, bits, p, LR, BETAS, EPS, 0.1, p_type, g_type, mode)
                for row in g:
                    want.step(row, SCALE)
                what = f"{rule} {bits}-bit {p_type} from {g_type} {mode}"
                same_bits(what + " parameters", ours["p"], want.p)
                same_bits(what + " m", ours["m"], want.m[0] if bits == 8 else want.m)
                if mode == "master":
                    same_bits(what + " master", ours["master"], want.master)
    print(f"{6 * len(cases)} cases of narrow types, master weights and stochastic rounding: bits equal")


def check_small_steps(tool: Tool) -> None:
    """Steps of a 64th of a bfloat16's unit: nearest rounding loses every one, the stochastic one none in the mean."""
    p, g = np.ones(8192, np.float32), np.ones((64, 8192), np.float32)
    lr = 2.0 ** -8 / 64
    stay = tool.run("lion", 32, p, g, 0.0, 1.0, lr=lr, types=("bfloat16", "bfloat16"))["p"]
    move = tool.run("lion", 32, p, g, 0.0, 1.0, lr=lr, types=("bfloat16", "bfloat16"), mode="stochastic")["p"]
    assert (stay == 1).all()
    # Each element's 64 steps are coins of 1 in 64, in units of 2^-8: a deviation of one unit, of 8192 a 90th.
    units = (1 - move.astype(np.float64)).mean() * 2 ** 8
    assert abs(units - 1) < 5 / 90, units
    print(f"64 steps of a 64th of a unit move bfloat16 by {units:.3f} units in the mean")


def check_torch(tool: Tool) -> None:
    """32-bit Adam and AdamW against torch. It divides by sqrt(v)/c2 + eps where we scale eps: a few ulp of a step of
    size lr each, over 200 steps."""
    rng = np.random.default_rng(2)
    p, g = rng.standard_normal(N).astype(np.float32), rng.standard_normal((200, N)).astype(np.float32)
    for rule, wd in (("adam", 0.0), ("adam", 0.1), ("adamw", 0.0), ("adamw", 0.1)):
        ours = tool.run(rule, 32, p, g, wd, 1.0)
        parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
        cls = torch.optim.Adam if rule == "adam" else torch.optim.AdamW
        optimizer = cls([parameter], lr=LR, betas=BETAS, eps=EPS, weight_decay=wd, foreach=False)
        for row in g:
            parameter.grad = torch.from_numpy(row.copy())
            optimizer.step()
        error = np.abs(ours["p"] - parameter.detach().numpy()).max()
        assert error < 200 * LR * 8 * 2.0 ** -24 + 8 * 2.0 ** -24 * 4, f"{rule} wd {wd}: differs from torch by {error}"
        print(f"{rule} wd {wd}: largest difference from torch after 200 steps {error:.1e}")


def check_bitsandbytes(tool: Tool) -> None:
    """8-bit against bitsandbytes' CPU optimizer. Its table look-up is inexact and can't hold zero, so single elements
    differ by parts of a step; the mean over the tensor must stay far below what 8 bits cost at all."""
    import bitsandbytes as bnb
    rng = np.random.default_rng(3)
    n, steps = 8192, 100
    p = rng.standard_normal(n).astype(np.float32)
    g = (rng.standard_normal((steps, n)) + rng.standard_normal(n)).astype(np.float32)
    for rule, cls, lr in (("adamw", bnb.optim.AdamW8bit, 1e-2), ("lion", bnb.optim.Lion8bit, 1e-3)):
        ours = tool.run(rule, 8, p, g, 0.1, 1.0, lr=lr)
        exact = tool.run(rule, 32, p, g, 0.1, 1.0, lr=lr)
        parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
        extra = {"eps": EPS} if rule == "adamw" else {}
        optimizer = cls([parameter], lr=lr, betas=BETAS, weight_decay=0.1, **extra)
        for row in g:
            parameter.grad = torch.from_numpy(row.copy())
            optimizer.step()
        theirs = parameter.detach().numpy()
        moved = np.abs(exact["p"] - p).mean()
        apart, off, their_off = (np.abs(a - b).mean() / moved for a, b in
                                 ((ours["p"], theirs), (ours["p"], exact["p"]), (theirs, exact["p"])))
        print(f"{rule} 8-bit: mean distance to bitsandbytes {apart:.4f}, to 32-bit {off:.4f} (bitsandbytes' {their_off:.4f}), "
              "as shares of the mean movement")
        assert apart < 0.05, f"{rule}: {apart} from bitsandbytes"
        assert off < max(0.02, 1.2 * their_off), f"{rule}: {off} from the 32-bit optimizer, bitsandbytes {their_off}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(args.tool, folder)
        for simd in targets(args.tool):
            check_reference(tool, simd)
        check_types(tool)
        check_small_steps(tool)
        check_torch(tool)
        check_bitsandbytes(tool)


if __name__ == "__main__":
    main()
