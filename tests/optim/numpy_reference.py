"""The arithmetic of docs/numerics.md, written a second time: slow, NumPy float32, one rounding an operation.

Nothing here is taken from the C++ code: tables come from their definition, encoding is a search over midpoints.
"""
import dataclasses
import math

import numpy as np

F = np.float32


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


def blocks_of(x: np.ndarray, size: int) -> np.ndarray:
    """[blocks, size], zeros after the last element."""
    whole = np.zeros(x.size + -x.size % size, x.dtype)
    whole[:x.size] = x
    return whole.reshape(-1, size)


def nearest(t: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The code of the entry next to t by the float32 midpoints; a tie goes to the even code."""
    middle = ((table[:-1] + table[1:]) * F(0.5)).astype(F)
    index = np.searchsorted(middle, t, side="left")  # midpoints strictly below t
    tie = (index < 255) & (middle[np.minimum(index, 254)] == t)
    return np.where(tie & (index % 2 == 1), index + 1, index).astype(np.uint8)


def encode(x: np.ndarray, table: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and absmax of x, in blocks of `size`."""
    blocks = blocks_of(x, size)
    absmax = np.abs(blocks).max(axis=1)
    bad, none = ~np.isfinite(blocks).all(axis=1), absmax < F(2.0 ** -126)
    keep = ~(bad | none)
    reciprocal = F(1) / np.where(keep, absmax, F(1))
    t = np.where(keep[:, None], np.clip(blocks * reciprocal[:, None], F(-1), F(1)), F(0))
    assert t.dtype == F
    stored = np.where(bad, F(np.nan), np.where(none, F(0), absmax)).astype(F)
    return nearest(t.ravel()[:x.size], table), stored


def decode(codes: np.ndarray, absmax: np.ndarray, table: np.ndarray, size: int) -> np.ndarray:
    return (table[codes] * np.repeat(absmax, size)[:codes.size]).astype(F)


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


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: a rule, the width of its state, hyper-parameters, types; the names are step_tool.cc's."""
    rule: str
    bits: int = 32
    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    wd: float = 0.0
    scale: float = 1.0
    unorm: float = 0.0  # max_unorm
    beta3: float = 0.999
    alpha: float = 5.0
    alpha_steps: int = 0
    beta3_steps: int = 0
    p_type: str = "float32"
    g_type: str = "float32"
    mode: str = "nearest"
    state_block: int = 256
    tables: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)  # [3, 256], or the dynamic ones

    def num_states(self) -> int:
        return {"adam": 2, "adamw": 2, "lamb": 2, "ademamix": 3}.get(self.rule, 1)

    def table(self, state: int) -> np.ndarray:
        if self.tables is not None:
            return self.tables[state]
        return UNSIGNED if state == 1 else SIGNED


def averages(case: Case, g: np.ndarray, m: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adam's two."""
    m = (F(case.beta1) * m) + (F(1.0 - case.beta1) * g)
    v = (F(case.beta2) * v) + ((F(1.0 - case.beta2) * g) * g)
    return m, v


def momentum(case: Case, t: int, g: np.ndarray, m: np.ndarray) -> np.ndarray:
    return g if t == 1 else (F(case.beta1) * m) + g


def mean_square(case: Case, g: np.ndarray, v: np.ndarray) -> np.ndarray:
    """RMSprop's."""
    return (F(case.beta1) * v) + ((F(1.0 - case.beta1) * g) * g)


def schedules(case: Case, t: int) -> tuple[float, float]:
    """AdEMAMix's alpha and beta3 at step t, in double (Pagliardini et al. 2024, section 3)."""
    alpha, beta3 = case.alpha, case.beta3
    if case.alpha_steps:
        alpha = min(t * case.alpha / case.alpha_steps, case.alpha)
    if case.beta3_steps:
        log1, log3, s = math.log(case.beta1), math.log(case.beta3), t / case.beta3_steps
        beta3 = min(math.exp(log1 * log3 / ((1 - s) * log3 + s * log1)), case.beta3)
    return alpha, beta3


COUPLED = ("adam", "sgd", "lars", "rmsprop", "adagrad")  # decay is added to the gradient; elsewhere it shrinks p


def adam_step(case: Case, t: int, p: np.ndarray, g: np.ndarray, states: list, us: np.float32) -> tuple:
    """Adam, AdamW and LAMB."""
    if case.wd != 0 and case.rule != "adam":
        p = p * F(1.0 - case.lr * case.wd)
    m, v = averages(case, g, *states)
    root = math.sqrt(1.0 - case.beta2 ** t)
    s, e = F(case.lr * root / (1.0 - case.beta1 ** t)), F(case.eps * root)
    return p - ((s * us) * (m / (np.sqrt(v) + e))), [m, v]


def ademamix_step(case: Case, t: int, p: np.ndarray, g: np.ndarray, states: list, us: np.float32) -> tuple:
    if case.wd != 0:
        p = p * F(1.0 - case.lr * case.wd)
    m, v = averages(case, g, *states[:2])
    alpha, beta3 = schedules(case, t)
    slow = (F(beta3) * states[2]) + (F(1.0 - beta3) * g)
    i1, i2 = F(1.0 / (1.0 - case.beta1 ** t)), F(1.0 / math.sqrt(1.0 - case.beta2 ** t))
    return p - (F(case.lr) * (((m * i1) + (F(alpha) * slow)) / ((np.sqrt(v) * i2) + F(case.eps)))), [m, v, slow]


def lion_step(case: Case, t: int, p: np.ndarray, g: np.ndarray, states: list, us: np.float32) -> tuple:
    if case.wd != 0:
        p = p * F(1.0 - case.lr * case.wd)
    u = (F(case.beta1) * states[0]) + (F(1.0 - case.beta1) * g)
    sign = np.where(u > 0, F(1), np.where(u < 0, F(-1), F(0))).astype(F)
    return p - (F(case.lr) * sign), [(F(case.beta2) * states[0]) + (F(1.0 - case.beta2) * g)]


def coupled_step(case: Case, t: int, p: np.ndarray, g: np.ndarray, states: list, us: np.float32) -> tuple:
    """Those of one state whose decay went into g: SGD with momentum, LARS, RMSprop, Adagrad."""
    if case.rule in ("sgd", "lars"):
        m = momentum(case, t, g, states[0])
        return p - ((F(case.lr) * us) * m), [m]
    if case.rule == "rmsprop":
        v = mean_square(case, g, states[0])
        return p - ((us * F(case.lr)) * (g / (np.sqrt(v) + F(case.eps)))), [v]
    v = states[0] + (g * g)
    return p - (F(case.lr) * (g / (np.sqrt(v) + F(case.eps)))), [v]


STEPS = {"adam": adam_step, "adamw": adam_step, "lamb": adam_step, "ademamix": ademamix_step, "lion": lion_step,
         "sgd": coupled_step, "lars": coupled_step, "rmsprop": coupled_step, "adagrad": coupled_step}


def limited_update(case: Case, t: int, g: np.ndarray, states: list) -> np.ndarray:
    """What max_unorm measures: the update before the learning rate, without decay that is no part of g."""
    if case.rule in ("sgd", "lars"):
        return momentum(case, t, g, states[0])
    if case.rule == "rmsprop":
        return g / (np.sqrt(mean_square(case, g, states[0])) + F(case.eps))
    m, v = averages(case, g, *states)
    c1, c2 = F(1.0 / (1.0 - case.beta1 ** t)), F(1.0 / (1.0 - case.beta2 ** t))
    return (m * c1) / (np.sqrt(v * c2) + F(case.eps))


def norm(x: np.ndarray) -> float:
    """Float64 squares, a pairwise tree over each 256 (halves), blocks in index order."""
    tree = blocks_of(x.astype(np.float64) ** 2, 256)
    while tree.shape[1] > 1:
        half = tree.shape[1] // 2
        tree = tree[:, :half] + tree[:, half:]
    total = 0.0
    for block in tree[:, 0]:
        total += float(block)
    return math.sqrt(total)


def update_scale(case: Case, p: np.ndarray, u: np.ndarray) -> np.float32:
    p_norm, u_norm = norm(p), norm(u)
    if p_norm == 0 or u_norm == 0:
        return F(1)
    return F(min(1.0, case.unorm * p_norm / u_norm))


class Reference:
    """One tensor's optimizer. `mode`: nearest, master or stochastic, with the seed and tensor of step_tool.cc."""

    def __init__(self, case: Case, p: np.ndarray) -> None:
        self.case, self.p, self.master, self.t, self.us = case, narrow(p, case.p_type), p.astype(F), 0, F(1)
        self.states = [self._encoded(i, np.zeros(p.size, F)) for i in range(case.num_states())]

    def _encoded(self, i: int, x: np.ndarray):
        return encode(x, self.case.table(i), self.case.state_block) if self.case.bits == 8 else x

    def _decoded(self, i: int) -> np.ndarray:
        if self.case.bits == 32:
            return self.states[i]
        return decode(*self.states[i], self.case.table(i), self.case.state_block)

    def step(self, grad: np.ndarray) -> None:
        case = self.case
        self.t += 1
        g = (narrow(grad, case.g_type) * F(case.scale)).astype(F)
        p = self.master if case.mode == "master" else self.p
        if case.wd != 0 and case.rule in COUPLED:
            g = g + (F(case.wd) * p)
        states = [self._decoded(i) for i in range(case.num_states())]
        self.us = update_scale(case, p, limited_update(case, self.t, g, states)) if case.unorm else F(1)
        p, states = STEPS[case.rule](case, self.t, p, g, states, self.us)
        assert all(x.dtype == F for x in (p, *states))
        self.master = p
        self.p = narrow_stochastic(p, 11, self.t, 3) if case.mode == "stochastic" else narrow(p, case.p_type)
        self.states = [self._encoded(i, x) for i, x in enumerate(states)]
