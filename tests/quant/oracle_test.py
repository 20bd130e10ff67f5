"""Blockwise quantisation against bitsandbytes (PyPI) and exact rational arithmetic, byte for byte.

Drives quant_tool on raw files. Bytes may differ from bitsandbytes' only in these classes, each counted and
printed; a differing byte outside of them fails the test:

  tie        8-bit: t equals a float32 midpoint. bitsandbytes' torch code goes down, we go to the even code, as
             its CUDA kernel does. FP4: t equals minus a midpoint; its torch code goes away from zero.
  tail       a last block that is not full: its torch code divides by absmax where full blocks (and we, and CUDA)
             multiply by the reciprocal; the two t differ by an ulp and lie on two sides of a decision point.
  denormal   absmax below 2^-126: we store absmax 0 and the code of 0; bitsandbytes clamps the divisor to 1e-38
             (and stores 1e-38 as the absmax of a tail of zeros).
  nonfinite  a block with NaN or an infinity: we store absmax NaN and the code of 0.
  fp4 zero   FP4 has two codes for 0: its torch code gives 8 to small positive t, we (and CUDA) to small
             negative t. Same value.
  fp4 bound  t between a midpoint of the FP4 table and the decimal literal of CUDA's kernel (14 ulp at most),
             which we use.
"""

import argparse
import collections
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
from fractions import Fraction

# bitsandbytes compiles its torch implementation otherwise, anew for each shape; the bytes are the same.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes.functional as F  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._C import DispatchKey, DispatchKeySet  # noqa: E402

F32 = np.float32
# The decisions of bitsandbytes' CUDA kernel for FP4 (dQuantizeFP4 in csrc/kernels.cu), as it spells them.
FP4_LITERALS = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], dtype=F32)
TINY = F32(2.0**-126)
classes: collections.Counter = collections.Counter()
failures: list[str] = []


def check(condition: bool, message: str) -> None:
    if not condition:
        failures.append(message)
        print("FAIL", message)


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=F32).view(np.uint32)


class Tool:
    """quant_tool, one process a call, files in a temporary folder."""

    def __init__(self, binary: str, folder: pathlib.Path, target: str):
        self.binary, self.folder = binary, folder
        self.env = dict(os.environ, BITSHARD_SIMD=target)

    def __call__(self, *args: object) -> None:
        done = subprocess.run([self.binary, *map(str, args)], env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"quant_tool {args}: {done.stderr}")

    def put(self, name: str, x: np.ndarray) -> pathlib.Path:
        path = self.folder / name
        path.write_bytes(np.ascontiguousarray(x).tobytes())
        return path

    def get(self, name: str, dtype: type) -> np.ndarray:
        return np.frombuffer((self.folder / name).read_bytes(), dtype=dtype)

    def q8(self, x: np.ndarray, code: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
        f = self.folder
        self("q8", self.put("code", code), block, self.put("x", x), f / "q", f / "a")
        return self.get("q", np.uint8), self.get("a", F32)

    def dq8(self, q: np.ndarray, code: np.ndarray, absmax: np.ndarray, block: int) -> np.ndarray:
        self("dq8", self.put("code", code), block, self.put("q", q), self.put("a", absmax), self.folder / "o")
        return self.get("o", F32)

    def q4(self, x: np.ndarray, kind: str, block: int) -> tuple[np.ndarray, np.ndarray]:
        f = self.folder
        self("q4", kind, block, self.put("x", x), f / "q", f / "a")
        return self.get("q", np.uint8), self.get("a", F32)

    def dq4(
        self, q: np.ndarray, absmax: np.ndarray, kind: str, block: int, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        f = self.folder
        self("dq4", kind, block, self.put("q", q), self.put("a", absmax), n, f / "o", f / "b")
        return self.get("o", F32), self.get("b", np.uint16)


def default_kernel(op, *args):
    """bitsandbytes' pure-torch implementation, past its compiled CPU one."""
    return op.default.redispatch(DispatchKeySet(DispatchKey.CompositeExplicitAutograd), *args)


def peer_quantise8(x: np.ndarray, code: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    op = torch.ops.bitsandbytes.quantize_blockwise
    q, absmax = default_kernel(op, torch.from_numpy(x.copy()), torch.from_numpy(code.copy()), block)
    return q.numpy(), absmax.numpy()


def peer_dequantise8(q: np.ndarray, code: np.ndarray, absmax: np.ndarray, block: int) -> np.ndarray:
    op = torch.ops.bitsandbytes.dequantize_blockwise
    tensors = [torch.from_numpy(x.copy()) for x in (q, absmax, code)]
    return default_kernel(op, *tensors, block, torch.float32).numpy()


# --- tables ---


def fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    assert Fraction(float(exact)) == exact  # so one rounding, from double
    return F32(float(exact))


def derive_dynamic(signed: bool) -> np.ndarray:
    """The table from its definition: midpoints of 2^i equal cells of [0.1, 1], times a power of ten."""
    values = [F32(0), F32(1)]
    for i in range(7):
        cells = 2**i if signed else 2 ** (i + 1)
        step = F32((F32(1) - F32(0.1)) / F32(cells))
        half = (cells + 1) // 2
        edges = [fma(step, F32(k), F32(0.1)) for k in range(half)]
        edges += [fma(-step, F32(cells - k), F32(1)) for k in range(half, cells + 1)]
        for low, high in zip(edges, edges[1:]):
            value = F32(F32(F32(low + high) / F32(2)) * F32(10.0 ** (i - 6)))
            values += [value, -value] if signed else [value]
    return np.sort(np.array(values, dtype=F32))


def test_tables(tool: Tool) -> dict[str, np.ndarray]:
    tool("tables", tool.folder)
    ours = {name: tool.get(name + ".f32", F32) for name in ("signed", "unsigned", "nf4", "fp4", "fp4_bounds")}
    for name, prefix in (("signed", "e732639a65f497b4"), ("unsigned", "305f002cc11278fb")):
        derived = derive_dynamic(name == "signed")
        peer = F.create_dynamic_map(signed=name == "signed").numpy().astype(F32)
        check((bits(ours[name]) == bits(derived)).all(), f"{name} table is not its recipe's")
        check((bits(ours[name]) == bits(peer)).all(), f"{name} table is not create_dynamic_map's")
        check(hashlib.sha256(ours[name].tobytes()).hexdigest().startswith(prefix), f"{name} table's SHA-256")
    for name in ("nf4", "fp4"):
        peer = F.get_4bit_type(name, device="cpu").numpy().astype(F32)
        check((bits(ours[name]) == bits(peer)).all(), f"{name} table is not get_4bit_type's")
    check((bits(ours["fp4_bounds"]) == bits(FP4_LITERALS)).all(), "fp4 decision points")
    return ours


# --- inputs ---


def midpoints(code: np.ndarray) -> np.ndarray:
    return (code[:-1] + code[1:]) * F32(0.5)


def around(points: np.ndarray, ulps: int = 3) -> np.ndarray:
    out = [points]
    for direction in (F32(-4), F32(4)):
        x = points
        for _ in range(ulps):
            x = np.nextafter(x, direction)
            out.append(x)
    return np.concatenate(out).astype(F32)


def with_unit_absmax(t: np.ndarray, block: int) -> np.ndarray:
    """Blocks whose first element is 1, so that t is the element itself."""
    t = t[np.abs(t) <= 1]
    t = np.concatenate([t, np.zeros(-len(t) % (block - 1), dtype=F32)]).reshape(-1, block - 1)
    return np.concatenate([np.ones((len(t), 1), dtype=F32), t], axis=1).reshape(-1)


def inputs(rng: np.random.Generator, points: np.ndarray, block: int) -> dict[str, np.ndarray]:
    normal = rng.standard_normal(40 * block + 7, dtype=F32)
    adversarial = [np.zeros(block), np.full(block, -0.0), rng.standard_normal(block) * 1e-39]
    adversarial += [rng.uniform(-1, 1, block) * a for a in (2.0**-126, 1e-30, 1e30, 2.0**127, 3.4e38)]
    sparse = np.zeros((8, block))
    sparse[np.arange(8), rng.integers(0, block, 8)] = rng.standard_normal(8)
    for bad in (np.nan, np.inf, -np.inf):
        x = rng.standard_normal(block)
        x[rng.integers(block)] = bad
        adversarial.append(x)
    adversarial += list(sparse)
    wide = np.exp(rng.uniform(-18, 0, 30 * block)) * rng.choice([-1.0, 1.0], 30 * block)
    scaled_ties = with_unit_absmax(around(points), block) * F32(0.0371)
    return {
        "normal": normal,
        "normal, bfloat16": torch.from_numpy(normal).bfloat16().float().numpy(),
        "wide": wide.astype(F32),
        "adversarial": np.concatenate(adversarial).astype(F32),
        "zero tail": np.concatenate([normal[: 2 * block], np.zeros(5, dtype=F32)]),
        "ties": with_unit_absmax(around(points), block),
        "scaled ties": scaled_ties.astype(F32),
        "tail": rng.standard_normal(block - 1, dtype=F32),
        "one": np.array([-3.0], dtype=F32),
    } | {
        f"tail of ties times {factor}": with_unit_absmax(around(points), block)[: block - 1] * F32(factor)
        for factor in (0.7, 0.3, 0.57, 0.9, 1.1, 0.0123)
    }


class Blocks:
    """What a differing byte is judged by: the t that either side decided on, and its block."""

    def __init__(self, x: np.ndarray, block: int):
        n = len(x)
        index = np.arange(n) // block
        count = -(-n // block)
        padded = np.zeros(count * block, dtype=F32)
        padded[:n] = x
        rows = padded.reshape(count, block)
        self.finite = np.isfinite(rows).all(axis=1)
        with np.errstate(all="ignore"):
            self.absmax = np.abs(rows).max(axis=1)
            self.denormal = self.finite & (self.absmax < TINY)
            self.tail = index == n // block
            a = np.where(self.absmax < TINY, F32(1), self.absmax)[index]
            self.multiplied = np.clip(x * (F32(1) / a), F32(-1), F32(1))
            self.divided = np.clip(x / a, F32(-1), F32(1))
        self.index = index

    def expected_absmax(self) -> np.ndarray:
        return np.where(self.finite, np.where(self.denormal, F32(0), self.absmax), F32(np.nan)).astype(F32)

    def check_absmax(self, ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
        check((bits(ours) == bits(self.expected_absmax())).all(), f"{name}: our absmax")
        plain = self.finite & ~self.denormal
        check((bits(ours)[plain] == bits(theirs)[plain]).all(), f"{name}: absmax differs from bitsandbytes'")
        classes["denormal"] += int((bits(ours) != bits(theirs))[self.denormal].sum())
        classes["nonfinite"] += int((~self.finite).sum())


def judge(blocks: Blocks, ours: np.ndarray, theirs: np.ndarray, zero: int, name: str, rules) -> None:
    """Every differing element must be in one of the classes; `rules` gives those of the format."""
    special = ~blocks.finite[blocks.index] | blocks.denormal[blocks.index]
    check((ours[special] == zero).all(), f"{name}: a special block has other codes than {zero}")
    differ = np.nonzero((ours != theirs) & ~special)[0]
    classes["denormal"] += int((ours != theirs)[blocks.denormal[blocks.index]].sum())
    for i in differ:
        kind = rules(blocks, int(i), int(ours[i]), int(theirs[i]))
        classes[kind or "UNEXPLAINED"] += 1
        check(kind is not None, f"{name}: element {i}: ours {ours[i]}, bitsandbytes' {theirs[i]}, "
                                f"t = {blocks.multiplied[i]!r}")


# --- 8-bit ---


def test_8bit(tool: Tool, name: str, code: np.ndarray, rng: np.random.Generator) -> None:
    m = midpoints(code)
    zero = int(nearest_even(m, np.zeros(1, dtype=F32))[0])

    def rules(b: Blocks, i: int, ours: int, theirs: int) -> str | None:
        t = b.divided[i] if b.tail[i] else b.multiplied[i]
        lower = int(np.searchsorted(m, t, side="left"))
        if theirs != lower:
            return None
        if ours == int(nearest_even(m, b.multiplied[i : i + 1])[0]):
            if (m == b.multiplied[i]).any():
                return "tie"
            if b.tail[i] and b.divided[i] != b.multiplied[i]:
                return "tail"
        return None

    for block in (64, 256, 4096):
        for label, x in inputs(rng, m, block).items():
            where = f"8-bit {name}, {label}, block {block}"
            ours, absmax = tool.q8(x, code, block)
            theirs, their_absmax = peer_quantise8(x, code, block)
            blocks = Blocks(x, block)
            blocks.check_absmax(absmax, their_absmax, where)
            judge(blocks, ours, theirs, zero, where, rules)
            back = tool.dq8(ours, code, absmax, block)
            their_back = peer_dequantise8(ours, code, absmax, block)
            same = (bits(back) == bits(their_back)) | (np.isnan(back) & np.isnan(their_back))
            check(same.all(), f"{where}: dequantised")


def nearest_even(m: np.ndarray, t: np.ndarray) -> np.ndarray:
    low = np.searchsorted(m, t, side="left")
    tie = np.isin(t, m)
    return low + (tie & (low % 2 == 1))


def test_ties_exactly(tool: Tool, name: str, code: np.ndarray, rng: np.random.Generator) -> None:
    """Against rational arithmetic: off the float32 midpoints the exactly nearest entry, on them the even one."""
    m = midpoints(code)
    t = np.concatenate([around(m), rng.uniform(-1, 1, 2000).astype(F32),
                        np.exp(rng.uniform(-17, 0, 2000)).astype(F32)])
    x = with_unit_absmax(t, 256)
    ours, absmax = tool.q8(x, code, 256)
    check((absmax == 1).all(), f"{name}: absmax of ties")
    exact = [Fraction(float(c)) for c in code]
    seen_ties = 0
    for value, got in zip(x, map(int, ours)):
        if (m == value).any():
            seen_ties += 1
            low = int(np.searchsorted(m, value, side="left"))
            want = low if low % 2 == 0 else low + 1
            check(got == want, f"{name}: tie {value!r} has code {got}, want {want}")
            continue
        v = Fraction(float(value))
        low = max(int(np.searchsorted(code, value, side="right")) - 1, 0)
        candidates = range(max(low - 1, 0), min(low + 2, 255) + 1)
        best = min(abs(v - exact[k]) for k in candidates)
        check(abs(v - exact[got]) == best, f"{name}: {value!r} has code {got}, which is not the nearest")
    check(seen_ties >= 255, f"{name}: only {seen_ties} ties seen")


# --- 4-bit ---


def unpack(packed: np.ndarray, n: int) -> np.ndarray:
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]


def test_4bit(tool: Tool, kind: str, tables: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    table = tables[kind]
    ordered = np.sort(np.unique(table))
    m = midpoints(ordered)
    zero = 7 if kind == "nf4" else 0
    positive = np.sort(table[:8])
    fp4_m = midpoints(positive)

    def rules(b: Blocks, i: int, ours: int, theirs: int) -> str | None:
        t = b.divided[i] if b.tail[i] else b.multiplied[i]
        # theirs: the nearest by sorted midpoints, ties down (the zeros of FP4 are one value here)
        if table[theirs] != ordered[int(np.searchsorted(m, t, side="left"))]:
            return None
        if kind == "fp4" and {ours, theirs} == {0, 8}:
            return "fp4 zero"
        if kind == "fp4":
            a = abs(b.multiplied[i])
            if (fp4_m == a).any() and b.multiplied[i] < 0:
                return "tie"
            if any(min(p, q) <= a <= max(p, q) for p, q in zip(fp4_m, FP4_LITERALS) if p != q):
                return "fp4 bound"
        if b.tail[i] and b.divided[i] != b.multiplied[i]:
            return "tail"
        return None

    points = m if kind == "nf4" else np.concatenate([m, FP4_LITERALS, -FP4_LITERALS])
    for block in (32, 64, 256, 4096):
        for label, x in inputs(rng, points, block).items():
            where = f"{kind}, {label}, block {block}"
            packed, absmax = tool.q4(x, kind, block)
            their_packed, their_absmax = torch.ops.bitsandbytes.quantize_4bit(
                torch.from_numpy(x.copy()), block, kind, torch.uint8)
            blocks = Blocks(x, block)
            blocks.check_absmax(absmax, their_absmax.numpy(), where)
            check(len(packed) == their_packed.numel(), f"{where}: packed size")
            theirs = unpack(their_packed.numpy().reshape(-1), len(x))
            judge(blocks, unpack(packed, len(x)), theirs, zero, where, rules)
            if len(x) % 2:
                check(int(packed[-1] & 15) == zero, f"{where}: the unused nibble")
            back, back16 = tool.dq4(packed, absmax, kind, block, len(x))
            got32 = torch.from_numpy(back.copy())
            got16 = torch.from_numpy(back16.copy().view(np.int16)).view(torch.bfloat16)
            weight = [torch.from_numpy(packed.copy()).view(-1, 1), torch.from_numpy(absmax.copy())]
            for got in (got32, got16):
                op = torch.ops.bitsandbytes.dequantize_4bit
                want = default_kernel(op, *weight, block, kind, [len(x)], got.dtype).reshape(-1)
                same = (got == want) | (got.isnan() & want.isnan())
                check(bool(same.all()), f"{where}: dequantised to {got.dtype}")


# --- double quantisation ---


def test_double_quantisation(tool: Tool, tables: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    code = tables["signed"]
    m = midpoints(code)
    f = tool.folder
    for blocks_count in (1, 255, 256, 257, 5000):
        weight = torch.from_numpy(rng.standard_normal(blocks_count * 64, dtype=F32) * F32(0.02))
        _, absmax = torch.ops.bitsandbytes.quantize_4bit(weight, 64, "nf4", torch.uint8)
        absmax = absmax.numpy()
        tool("qabsmax", tool.put("absmax", absmax), f / "q", f / "a", f / "offset")
        ours, scales, offset = tool.get("q", np.uint8), tool.get("a", F32), tool.get("offset", F32)[0]
        total = 0.0
        for a in absmax:
            total += float(a)
        check(offset == F32(total / blocks_count), f"offset of {blocks_count} scales")
        difference = absmax - offset
        theirs, their_scales = peer_quantise8(difference, code, 256)
        b = Blocks(difference, 256)

        def rules(b: Blocks, i: int, got: int, their: int) -> str | None:
            t = b.divided[i] if b.tail[i] else b.multiplied[i]
            if their != int(np.searchsorted(m, t, side="left")):
                return None
            if (m == b.multiplied[i]).any():
                return "tie"
            return "tail" if b.tail[i] and b.divided[i] != b.multiplied[i] else None

        b.check_absmax(scales, their_scales, f"{blocks_count} scales")
        judge(b, ours, theirs, 127, f"{blocks_count} scales", rules)
        tool("dqabsmax", f / "q", f / "a", f / "offset", f / "o")
        want = peer_dequantise8(ours, code, scales, 256) + offset
        check((bits(tool.get("o", F32)) == bits(want)).all(), f"{blocks_count} scales dequantised")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", required=True, help="the quant_tool binary")
    parser.add_argument("--simd", default="", help="SIMD target for quant_tool")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(args.tool, pathlib.Path(folder), args.simd)
        tables = test_tables(tool)
        codes = {"signed": tables["signed"], "unsigned": tables["unsigned"],
                 "linear": F.create_linear_map(signed=True).numpy().astype(F32),
                 "fp8": F.create_fp8_map(signed=True, exponent_bits=5, precision_bits=2).numpy().astype(F32)}
        for name, code in codes.items():
            test_8bit(tool, name, code, rng)
            if name in ("signed", "unsigned"):
                test_ties_exactly(tool, name, code, rng)
        for kind in ("nf4", "fp4"):
            test_4bit(tool, kind, tables, rng)
        test_double_quantisation(tool, tables, rng)
    print("bytes that differ from bitsandbytes' by class:", dict(classes))
    for kind in ("tie", "tail", "denormal", "nonfinite", "fp4 zero", "fp4 bound"):
        check(classes[kind] > 0, f"no byte of class '{kind}' was seen: the class is out of date")
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
