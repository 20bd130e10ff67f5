"""The arithmetic of docs/numerics.md, written a second time: slow, NumPy float32, one rounding an operation.

Nothing here is taken from the C++ code: tables come from their definition, encoding is a search over midpoints.
"""
import numpy as np

F = np.float32
BLOCK = 256


def dynamic_table(signed: bool) -> np.ndarray:
    """Decades of equal cells between 0.1 and 1, times powers of ten; torch.linspace's FMA recipe for the borders."""
    values = [F(0), F(1)]
    for decade in range(7):
        items = 2 ** (decade if signed else decade + 1)
        n = items + 1
        step = F(F(F(1) - F(0.1)) / F(n - 1))
        border = []
        for i in range(n):  # fma: product exact in float64, one rounding
            if i < n // 2:
                border.append(F(np.float64(step) * i + np.float64(F(0.1))))
            else:
                border.append(F(np.float64(1) - np.float64(step) * (n - 1 - i)))
        power = F(10.0 ** (decade - 6))
        for a, b in zip(border[:-1], border[1:]):
            mean = F(F(a + b) / F(2))
            values.append(F(mean * power))
            if signed:
                values.append(F(-F(mean * power)))
    table = np.sort(np.array(values, dtype=F))
    assert table.size == 256
    return table


SIGNED, UNSIGNED = dynamic_table(True), dynamic_table(False)


def encode(x: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and absmax of x, block by block."""
    codes = np.empty(x.size, np.uint8)
    absmax = np.empty((x.size + BLOCK - 1) // BLOCK, F)
    middle = ((table[:-1] + table[1:]) * F(0.5)).astype(F)
    zero = int(np.flatnonzero(table == 0)[0])
    for b in range(absmax.size):
        block = x[b * BLOCK:(b + 1) * BLOCK]
        a = np.abs(block).max()
        if not np.isfinite(block).all() or a < F(2.0 ** -126):
            absmax[b] = F(np.nan) if not np.isfinite(block).all() else F(0)
            codes[b * BLOCK:(b + 1) * BLOCK] = zero
            continue
        t = np.clip((block * F(F(1) / a)).astype(F), F(-1), F(1))
        index = np.searchsorted(middle, t, side="left")  # midpoints strictly below t
        tie = (index < 255) & (middle[np.minimum(index, 254)] == t)
        codes[b * BLOCK:(b + 1) * BLOCK] = np.where(tie & (index % 2 == 1), index + 1, index)
        absmax[b] = a
    return codes, absmax


def decode(codes: np.ndarray, absmax: np.ndarray, table: np.ndarray) -> np.ndarray:
    return (table[codes] * np.repeat(absmax, BLOCK)[:codes.size]).astype(F)


def narrow(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to nearest even to a type, as float32."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(F)
    if dtype == "bfloat16":
        bits = x.astype(F).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(F)
    return x.astype(F)


def philox(key: int, low: np.ndarray, high: int) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011) at counters (low, high) of 64 bits each: four words of 32."""
    mask = np.uint64(0xFFFFFFFF)
    low = np.atleast_1d(np.asarray(low, np.uint64))
    c = [low & mask, low >> np.uint64(32), np.full_like(low, high & 0xFFFFFFFF), np.full_like(low, high >> 32)]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [b >> np.uint64(32) ^ c[1] ^ np.uint64(k[0]), b & mask, a >> np.uint64(32) ^ c[3] ^ np.uint64(k[1]), a & mask]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def narrow_stochastic(x: np.ndarray, seed: int, step: int, tensor: int) -> np.ndarray:
    """To bfloat16: up with the probability that the discarded bits are of 2^16. Element i takes word i % 4 at counter
    i // 4 of the stream of (seed, purpose 4, step, tensor)."""
    first = philox(seed, np.uint64(4 << 32 | step), tensor)
    key = int(first[0][0]) << 32 | int(first[1][0])
    words = np.stack(philox(key, np.arange((x.size + 3) // 4), 0), axis=1).ravel()[:x.size]
    bits = x.astype(F).view(np.uint32).astype(np.uint64)
    return ((bits + (words >> np.uint64(16))) & np.uint64(0xFFFF0000)).astype(np.uint32).view(F)


class Reference:
    """One tensor's optimizer. `mode`: nearest, master or stochastic, with the seed and tensor of step_tool.cc."""

    def __init__(self, rule: str, bits: int, p: np.ndarray, lr: float, betas: tuple[float, float], eps: float,
                 wd: float, p_type: str = "float32", g_type: str = "float32", mode: str = "nearest") -> None:
        self.rule, self.bits, self.p = rule, bits, narrow(p, p_type)
        self.p_type, self.g_type, self.mode, self.master = p_type, g_type, mode, p.astype(F)
        self.lr, self.betas, self.eps, self.wd, self.t = lr, betas, eps, wd, 0
        zero = np.zeros(p.size, F)
        self.m = encode(zero, SIGNED) if bits == 8 else zero.copy()
        self.v = encode(zero, UNSIGNED) if bits == 8 else zero.copy()

    def step(self, grad: np.ndarray, scale: float) -> None:
        self.t += 1
        b1, b2 = (F(b) for b in self.betas)
        o1, o2 = (F(1.0 - b) for b in self.betas)
        g = (narrow(grad, self.g_type) * F(scale)).astype(F)
        p = self.master if self.mode == "master" else self.p
        m = decode(*self.m, SIGNED) if self.bits == 8 else self.m
        v = decode(*self.v, UNSIGNED) if self.bits == 8 else self.v
        if self.rule == "lion":
            if self.wd != 0:
                p = p * F(1.0 - self.lr * self.wd)
            u = (b1 * m) + (o1 * g)
            sign = np.where(u > 0, F(1), np.where(u < 0, F(-1), F(0))).astype(F)
            p = p - (F(self.lr) * sign)
            m = (b2 * m) + (o2 * g)
        else:
            if self.rule == "adam" and self.wd != 0:
                g = g + (F(self.wd) * p)
            if self.rule == "adamw" and self.wd != 0:
                p = p * F(1.0 - self.lr * self.wd)
            root = np.sqrt(1.0 - self.betas[1] ** self.t)
            s, e = F(self.lr * root / (1.0 - self.betas[0] ** self.t)), F(self.eps * root)
            m = (b1 * m) + (o1 * g)
            v = (b2 * v) + ((o2 * g) * g)
            p = p - (s * (m / (np.sqrt(v) + e)))
        assert p.dtype == F and m.dtype == F and v.dtype == F
        self.master = p
        self.p = (narrow_stochastic(p, 11, self.t, 3) if self.mode == "stochastic" else narrow(p, self.p_type))
        self.m = encode(m, SIGNED) if self.bits == 8 else m
        self.v = encode(v, UNSIGNED) if self.bits == 8 else v
