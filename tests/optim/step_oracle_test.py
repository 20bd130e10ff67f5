"""Optimizer steps, bit for bit against the NumPy reference on every SIMD target."""
import argparse
import dataclasses
import tempfile

import bitsandbytes.functional as bnb
import numpy as np

from numpy_reference import Case, Reference
from step_driver import STATES, Tool, simd_targets

N = 1000  # three whole blocks of 256 and a part
RULES = ("adam", "adamw", "lamb", "lion", "lars", "sgd", "rmsprop", "adagrad", "ademamix")
LIMITED = {"adam": 0.15, "adamw": 0.15, "lamb": 0.15, "lars": 0.05, "sgd": 0.5, "rmsprop": 0.7}  # max_unorm where it applies
STEPS = (1, 2, 30, 1000)


def gradients(steps: int) -> np.ndarray:
    """Ordinary ones, and what breaks things: zeros, a block of zeros, denormals, huge and tiny, sign changes."""
    rng = np.random.default_rng(7)
    g = rng.standard_normal((steps, N)).astype(np.float32)
    g[:, :32] = 0
    g[: steps // 2, 256:512] = 0
    g[:, 40:60] *= np.float32(1e-20)
    g[:, 60:70] *= np.float32(1e15)
    g[:, 70:80] = np.float32(1e-41)
    g[::2, 80:100] *= np.float32(-0.0)
    g[:, 512:712] *= np.float32(1e-18)
    return g


def even_gradients(steps: int) -> np.ndarray:
    """Those without the huge ones, which would make every other step vanish beside the tensor's norm; of very
    different length from step to step."""
    g = gradients(steps)
    g[:, 60:70] *= np.float32(1e-15)
    return g * np.exp(np.random.default_rng(8).standard_normal((steps, 1))).astype(np.float32)


def same_bits(what: str, a: np.ndarray, b: np.ndarray) -> None:
    a, b = (x.view(np.uint32) if x.dtype == np.float32 else x for x in (a, b))
    bad = np.flatnonzero(a != b)
    assert bad.size == 0, f"{what}: {bad.size} differ, first at {bad[0]}: {a[bad[0]]:#x} and {b[bad[0]]:#x}"


def wanted(reference: Reference) -> dict:
    """The reference's arrays, named as the tool's."""
    out = {"p": reference.p}
    for name, state in zip(STATES, reference.states):
        if reference.case.bits == 8:
            out[name], out[name + "a"] = state
        else:
            out[name] = state
    if reference.case.mode == "master":
        out["master"] = reference.master
    return out


def check(tool: Tool, simds: list[str], case: Case, p: np.ndarray, g: np.ndarray, steps: tuple = ()) -> list[float]:
    """Parameters and states after each of `steps` (else all rows of g) on all targets. Returns update scales."""
    reference, scales = Reference(case, p), []
    for t, row in enumerate(g, 1):
        reference.step(row)
        scales.append(float(reference.us))
        if t not in (steps or (len(g),)):
            continue
        want = wanted(reference)
        for simd in simds:
            ours = tool.run(case, p, g, simd, t)
            assert ours.keys() == want.keys()
            for name, x in want.items():
                same_bits(f"{simd} {case} after {t} steps: {name}", ours[name], x)
    return scales


def check_rules(tool: Tool, simds: list[str]) -> None:
    """Every rule, width, decay and, where it applies, limit."""
    p = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    g, even = gradients(STEPS[-1]), even_gradients(STEPS[-1])
    cases = [Case(rule, bits, wd=wd, scale=0.5) for rule in RULES for bits in (8, 32) for wd in (0.0, 0.1)]
    cases += [Case("ademamix", bits, wd=0.1, alpha_steps=20, beta3_steps=500) for bits in (8, 32)]
    for case in cases:
        check(tool, simds, case, p, g, STEPS)
    print(f"{len(cases)} cases, {STEPS[-1]} steps of {N} elements, on {', '.join(simds)}: bits equal")
    for rule, unorm in LIMITED.items():
        for bits in (8, 32):
            for wd in (0.0, 0.1):
                scales = check(tool, simds, Case(rule, bits, lr=1e-3, wd=wd, unorm=unorm, scale=0.5), p, even, STEPS)
                limited = sum(scale < 1 for scale in scales)
                assert 100 < limited, f"{rule}: max_unorm {unorm} limits {limited} of {len(scales)} steps"
        print(f"{rule} with max_unorm {unorm}, 4 cases: bits equal; {limited} of {len(scales)} steps limited")


def own_tables() -> dict[str, np.ndarray]:
    """[3, 256] each: tables that a caller may pass instead of the dynamic ones, for m, v and slow."""
    def own(*maps) -> np.ndarray:
        return np.stack([m.numpy().astype(np.float32) for m in maps])

    rng = np.random.default_rng(5)
    rough = np.sort(rng.uniform(-1, 1, (3, 256)), axis=1).astype(np.float32)
    rough[:, 100] = 0  # not where the dynamic tables have it
    return {"linear": own(bnb.create_linear_map(True), bnb.create_linear_map(False), bnb.create_linear_map(True)),
            "fp8": own(bnb.create_fp8_map(True, 5, 2, 8), bnb.create_fp8_map(False, 5, 3, 8),
                       bnb.create_fp8_map(True, 4, 3, 8)),
            "irregular": np.sort(rough, axis=1),
            "swapped dynamic": own(*(bnb.create_dynamic_map(signed) for signed in (False, True, False)))}


def check_tables_and_blocks(tool: Tool, simds: list[str]) -> None:
    p = np.random.default_rng(6).standard_normal(N).astype(np.float32)
    g = gradients(STEPS[-1])
    tables = own_tables()
    for rule in RULES:
        for kind in tables:
            check(tool, simds, Case(rule, 8, wd=0.1, tables=tables[kind]), p, g)
        for state_block in (64, 128):
            check(tool, simds, Case(rule, 8, wd=0.1, state_block=state_block), p, g)
        check(tool, simds, Case(rule, 8, wd=0.1, state_block=64, tables=tables["fp8"],
                                unorm=LIMITED.get(rule, 0.0)), p, g)
    print(f"{len(RULES)} rules with {len(tables)} kinds of tables, blocks of 64 and 128, {len(g)} steps: bits equal")


def check_types(tool: Tool, simds: list[str]) -> None:
    """Narrow parameters and gradients, master weights, stochastic rounding."""
    p = np.random.default_rng(4).standard_normal(N).astype(np.float32)
    g = np.clip(gradients(20), -6e4, 6e4)
    names = ("float32", "bfloat16", "float16")
    types = [(a, b, "nearest") for a in names for b in names] + [("bfloat16", b, "stochastic") for b in names]
    types += [("bfloat16", "bfloat16", "master"), ("float16", "float16", "master")]
    for rule in RULES:
        for bits in (8, 32):
            for p_type, g_type, mode in types:
                check(tool, simds, Case(rule, bits, wd=0.1, scale=0.5, p_type=p_type, g_type=g_type, mode=mode,
                                        unorm=LIMITED.get(rule, 0.0)), p, g)
    print(f"{2 * len(RULES) * len(types)} cases of narrow types, master weights and stochastic rounding: bits equal")


def check_small_steps(tool: Tool) -> None:
    """Steps of a 64th of a bfloat16's unit: nearest rounding loses every one, the stochastic one none in the mean."""
    p, g = np.ones(8192, np.float32), np.ones((64, 8192), np.float32)
    case = Case("lion", lr=2.0 ** -8 / 64, p_type="bfloat16", g_type="bfloat16")
    stay = tool.run(case, p, g)["p"]
    move = tool.run(dataclasses.replace(case, mode="stochastic"), p, g)["p"]
    assert (stay == 1).all()
    # Each element's 64 steps are coins of 1 in 64, in units of 2^-8: a deviation of one unit, of 8192 a 90th.
    units = (1 - move.astype(np.float64)).mean() * 2 ** 8
    assert abs(units - 1) < 5 / 90, units
    print(f"64 steps of a 64th of a unit move bfloat16 by {units:.3f} units in the mean")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(args.tool, folder)
        simds = simd_targets(args.tool)
        check_rules(tool, simds)
        check_tables_and_blocks(tool, simds)
        check_types(tool, simds)
        check_small_steps(tool)


if __name__ == "__main__":
    main()
