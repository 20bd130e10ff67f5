"""Optimizer steps against torch and against every optimizer class of bitsandbytes (PyPI, on the CPU).

32-bit trajectories stay within a bound that is derived below; 8-bit ones within a small share of the movement, since
bitsandbytes' table look-up on a CPU is inexact. Where its CPU code disagrees with its own other backends, we follow
the others (docs/numerics.md); each such case has a test that prints both numbers.
"""
import argparse
import dataclasses
import inspect
import os
import tempfile
import warnings
from unittest import mock

# bitsandbytes compiles its torch implementation otherwise, anew for each shape; the numbers are the same.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes as bnb  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._C import DispatchKey, DispatchKeySet  # noqa: E402

from numpy_reference import Case  # noqa: E402
from step_driver import Tool  # noqa: E402

warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
UNIT = 2.0 ** -24  # half a unit in the last place of 1, the error of one rounding
EPS = 1e-2  # large, so that its place shows
N, STEPS = 8192, 100  # of 8-bit state; bitsandbytes holds fewer than 4096 elements in 32 bits
STEPS_32BIT = 1000
# The rule of each class, by the part of its name before 8bit, 32bit and after Paged.
RULE_OF = {"Adam": "adamw", "AdamW": "adamw", "Lion": "lion", "LAMB": "lamb", "LARS": "lars", "SGD": "sgd",
           "RMSprop": "rmsprop", "Adagrad": "adagrad", "AdEMAMix": "ademamix"}
MAX_UNORM = {"lamb": 1.0, "lars": 0.02}  # bitsandbytes' defaults


def random_inputs(n: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters; gradients with a mean that differs by element and a length that differs by step."""
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(n).astype(np.float32)
    g = (rng.standard_normal((steps, n)) + rng.standard_normal(n)) * np.exp(0.5 * rng.standard_normal((steps, 1)))
    return p, g.astype(np.float32)


def follow(make, p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """[steps + 1, n]: what an optimizer of torch or bitsandbytes makes of p."""
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    optimizer, path = make([parameter]), [p]
    for row in g:
        parameter.grad = torch.from_numpy(row.copy())
        optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return np.stack(path)


def bound(path: np.ndarray, case: Case) -> np.ndarray:
    """[n]: how far two float32 evaluations of one rule may drift apart. In a step both sides round p, each by up to |p|
    units; the update comes of at most 16 roundings a side, relative to its length; and what one of an average's three
    roundings does to it moves p for 1/(1-beta) further steps. Roundings are as good as independent, of deviation
    UNIT/sqrt(3) each: they add up as squares, and six deviations are allowed."""
    memory = sum(3 / (1 - beta) ** 2 for beta in (case.beta1, case.beta2, case.beta3)[:case.num_states()])
    squares = 2 * path[1:].astype(np.float64) ** 2 + (32 + memory) * np.diff(path.astype(np.float64), axis=0) ** 2
    return 6 * UNIT / np.sqrt(3) * np.sqrt(squares.sum(axis=0))


def check_32bit(tool: Tool, what: str, case: Case, make, seed: int = 2) -> None:
    p, g = random_inputs(1000, STEPS_32BIT, seed)
    path = follow(make, p, g)
    error, limit = np.abs(tool.run(case, p, g)["p"].astype(np.float64) - path[-1]), bound(path, case)
    # A sum that is almost zero has its sign by a rounding; Lion then steps the other way.
    allowed = 2 if case.rule == "lion" else 0
    worst = np.sort(error / limit)[-1 - allowed]
    assert worst < 1, f"{what}: differs by {error.max():.1e}, {worst:.2f} of the bound"
    print(f"{what}: after {len(g)} steps {error.max():.1e} apart, {worst:.2f} of the bound")


def check_torch(tool: Tool) -> None:
    for wd in (0.0, 0.1):
        adam = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": EPS, "weight_decay": wd, "foreach": False}
        for rule, make in (
                ("adam", lambda p: torch.optim.Adam(p, **adam)),
                ("adamw", lambda p: torch.optim.AdamW(p, **adam)),
                ("sgd", lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=wd, foreach=False)),
                ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=1e-2, alpha=0.9, eps=EPS, weight_decay=wd,
                                                          foreach=False)),
                ("adagrad", lambda p: torch.optim.Adagrad(p, lr=1e-2, eps=EPS, weight_decay=wd, foreach=False))):
            check_32bit(tool, f"torch {rule} wd {wd}", Case(rule, eps=EPS, wd=wd), make)


def default_backend(*args: object) -> None:
    """optimizer_update_32bit of bitsandbytes' backend for devices without kernels of their own."""
    torch.ops.bitsandbytes.optimizer_update_32bit.default.redispatch(
        DispatchKeySet(DispatchKey.CompositeExplicitAutograd), *args)


def on_default_backend():
    packet = mock.Mock(side_effect=default_backend)
    packet.default = torch.ops.bitsandbytes.optimizer_update_32bit.default
    return mock.patch.object(torch.ops.bitsandbytes, "optimizer_update_32bit", packet)


def rule_and_bits(name: str) -> tuple[str, int]:
    stem = name.removeprefix("Paged").removesuffix("8bit").removesuffix("32bit")
    return RULE_OF[stem], 8 if name.endswith("8bit") else 32


def arguments(case: Case) -> dict:
    """A case's hyper-parameters as the class of its rule calls them."""
    both = {"lr": case.lr, "weight_decay": case.wd}
    if case.rule in ("adamw", "lamb"):
        return both | {"betas": (case.beta1, case.beta2), "eps": case.eps}
    if case.rule == "lion":
        return both | {"betas": (case.beta1, case.beta2)}
    if case.rule in ("sgd", "lars"):
        return both | {"momentum": case.beta1}
    if case.rule == "rmsprop":
        return both | {"alpha": case.beta1, "eps": case.eps}
    if case.rule == "adagrad":
        return both | {"eps": case.eps}
    return both | {"betas": (case.beta1, case.beta2, case.beta3), "eps": case.eps, "alpha": case.alpha,
                   "t_alpha": case.alpha_steps or None, "t_beta3": case.beta3_steps or None}


def classes() -> list[str]:
    """Every optimizer class of bitsandbytes that can step on a CPU."""
    base = bnb.optim.optimizer.Optimizer8bit
    names = [name for name, cls in vars(bnb.optim).items() if inspect.isclass(cls) and issubclass(cls, base)]
    # They make a state of half the size that their kernel wants, and fail at the first step (issue 2075).
    broken = {"AdEMAMix32bit", "PagedAdEMAMix32bit"}
    assert broken < set(names) and len(names) > 30, names
    return sorted(set(names) - broken)


def check_bitsandbytes_32bit(tool: Tool) -> None:
    for name in classes():
        rule, bits = rule_and_bits(name)
        if bits != 32:
            continue
        for wd in (0.1,) if name.startswith("Paged") or name.endswith("32bit") else (0.0, 0.1):
            case = Case(rule, lr=1e-2, eps=EPS, wd=wd, unorm=MAX_UNORM.get(rule, 0.0))
            # Its CPU code measures another norm than its other backends: see check_norms.
            with on_default_backend() if rule == "lamb" else mock.MagicMock() as used:
                check_32bit(tool, f"bitsandbytes {name} wd {wd}", case,
                            lambda p: getattr(bnb.optim, name)(p, **arguments(case)))
            assert rule != "lamb" or used.call_count == STEPS_32BIT
    case = Case("ademamix", eps=EPS, alpha_steps=50, beta3_steps=150)
    check_32bit(tool, "bitsandbytes AdEMAMix scheduled", case, lambda p: bnb.optim.AdEMAMix(p, **arguments(case)))


def check_norms(tool: Tool) -> None:
    """What max_unorm measures. LAMB: its CPU code leaves the bias corrections out, so that the first steps are cut to a
    third and more; its other backends have them, and so have we. LARS: the other backends leave coupled decay out of
    the norm though it is in the update; its CPU code doesn't, and so don't we. Both numbers of each."""
    p, g = random_inputs(1000, 20, 2)
    for rule, cls, followed in (("lamb", bnb.optim.LAMB, "default"), ("lars", bnb.optim.LARS, "cpu")):
        case = Case(rule, eps=EPS, wd=0.5, unorm=MAX_UNORM[rule])
        ours, apart = tool.run(case, p, g)["p"], {}
        for backend in ("default", "cpu"):
            with on_default_backend() if backend == "default" else mock.MagicMock():
                path = follow(lambda q: cls(q, **arguments(case)), p, g)
            apart[backend] = float((np.abs(ours - path[-1]) / bound(path, case)).max())
        print(f"{rule} with decay: from bitsandbytes' default backend {apart['default']:.2f} bounds, from its CPU code "
              f"{apart['cpu']:.2f}")
        other, = set(apart) - {followed}
        assert apart[followed] < 1 < 10 < apart[other], f"{rule}: {apart}"
    # A tensor that starts at zero, as LoRA's B, has the norm 0: bitsandbytes never moves it.
    case = Case("lars", unorm=MAX_UNORM["lars"])
    zero = np.zeros(1000, np.float32)
    theirs = np.abs(follow(lambda q: bnb.optim.LARS(q, **arguments(case)), zero, g)[-1]).max()
    ours = np.abs(tool.run(case, zero, g)["p"]).max()
    print(f"lars from zero: bitsandbytes moves by {theirs}, we by {ours:.2f}")
    assert theirs == 0 < 0.01 < ours


def check_schedules(tool: Tool) -> None:
    """AdEMAMix's alpha and beta3 of every step against what bitsandbytes passes to its kernel."""
    p, g = np.zeros(1, np.float32), np.zeros((120, 1), np.float32)
    for beta1, beta3, alpha, alpha_steps, beta3_steps in (
            (0.9, 0.9999, 5.0, 100, 100), (0.9, 0.999, 8.0, 30, 0), (0.5, 0.99, 2.0, 0, 77), (0.9, 0.9999, 5.0, 1, 1)):
        case = Case("ademamix", beta1=beta1, beta3=beta3, alpha=alpha, alpha_steps=alpha_steps, beta3_steps=beta3_steps)
        tool.run(case, p, g)
        ours = np.array([line.split() for line in tool.printed[1:]], np.float64)
        with mock.patch.object(bnb.functional, "optimizer_update_32bit") as kernel:
            follow(lambda q: bnb.optim.AdEMAMix(q, **arguments(case)), p, g)
        theirs = np.array([(call.args[11], call.args[10]) for call in kernel.call_args_list], np.float64)
        assert ours.shape == theirs.shape == (len(g), 2)
        error = np.abs(ours - theirs).max()
        assert error < 1e-12, f"{case}: {error}"
        assert (ours[-1] == (alpha, beta3)).all() and (ours[0] < (alpha, beta3)).any() == (max(alpha_steps, beta3_steps) > 1)
    print("AdEMAMix's alpha and beta3: bitsandbytes' at every step")


def check_bitsandbytes_8bit(tool: Tool) -> None:
    """Its table look-up is inexact: about one code in 700 is a neighbour of the right one, and none is zero. So single
    elements differ by parts of a step, and the mean over the tensor stays far below what 8 bits cost at all, which is
    0.6% to 1.6% of the movement for both."""
    p, g = random_inputs(N, STEPS, 3)
    for rule in dict.fromkeys(RULE_OF.values()):
        # Its 8-bit kernels have no norms: LAMB is Adam there, and LARS is SGD. Ours have; compared without.
        case = Case(rule, 8, lr=1e-3 if rule == "lion" else 1e-2, wd=0.1)
        ours, exact = tool.run(case, p, g)["p"], tool.run(dataclasses.replace(case, bits=32), p, g)["p"]
        moved = np.abs(exact - p).mean()
        for name in classes():
            if rule_and_bits(name) != (rule, 8):
                continue
            theirs = follow(lambda q: getattr(bnb.optim, name)(q, **arguments(case)), p, g)[-1]
            apart, off, their_off = (np.abs(a - b).mean() / moved for a, b in
                                     ((ours, theirs), (ours, exact), (theirs, exact)))
            print(f"{name}: mean distance to bitsandbytes {apart:.4f}, to 32-bit {off:.4f} (bitsandbytes' "
                  f"{their_off:.4f}), as shares of the mean movement")
            assert apart < 0.003, f"{name}: {apart} from bitsandbytes"
            assert off < 1.1 * their_off < 0.02, f"{name}: {off} from the 32-bit optimizer, theirs {their_off}"


def check_without_gradient(tool: Tool) -> None:
    """8-bit Adam without decay leaves an element alone whose gradient was always 0. bitsandbytes' look-up on a CPU has
    no code for zero there, and moves it."""
    p, g = random_inputs(N, 10, 4)
    g[:, ::2] = 0
    case = Case("adamw", 8)
    ours = tool.run(case, p, g)["p"]
    theirs = follow(lambda q: bnb.optim.AdamW8bit(q, **arguments(case)), p, g)[-1]
    moved, their_moved = (np.abs(x - p)[::2].max() for x in (ours, theirs))
    print(f"elements without gradient: moved by {moved} (bitsandbytes by {their_moved:.1e})")
    assert moved == 0 < their_moved


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tool = Tool(args.tool, folder)
        check_torch(tool)
        check_bitsandbytes_32bit(tool)
        check_norms(tool)
        check_schedules(tool)
        check_bitsandbytes_8bit(tool)
        check_without_gradient(tool)


if __name__ == "__main__":
    main()
