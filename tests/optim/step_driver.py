"""Runs step_tool, the optimizer step of the engine on one tensor, for the oracles beside this file."""
import os
import pathlib
import subprocess

import numpy as np

from numpy_reference import Case

STATES = ("m", "v", "slow")


def simd_targets(tool: str) -> list[str]:
    """The SIMD targets of this processor, from the message about one that does not exist."""
    names = []
    for name in ("AVX3_DL", "AVX3", "AVX2", "SSE4", "SSSE3", "NEON", "SVE"):
        if subprocess.run([tool, "/tmp/none", "rule=none"], capture_output=True,
                          env=dict(os.environ, BITSHARD_SIMD=name)).returncode != 2:
            names.append(name)
    assert names
    return names


class Tool:
    def __init__(self, path: str, folder: str) -> None:
        self.path, self.prefix = path, str(pathlib.Path(folder) / "step")
        self.printed: list[str] = []  # by the last run
        self._inputs: tuple = (None, None)

    def run(self, case: Case, p: np.ndarray, g: np.ndarray, simd: str = "", steps: int | None = None) -> dict:
        """What `steps` steps (all rows of g where none are given) leave: p, and of each state its values, or codes and
        absmax (m, ma); with master weights, those."""
        if self._inputs[0] is not p or self._inputs[1] is not g:
            p.astype(np.float32).tofile(self.prefix + ".p")
            g.astype(np.float32).tofile(self.prefix + ".g")
            self._inputs = (p, g)
        settings = {"rule": f"{case.rule}_{case.bits}bit", "steps": steps or len(g), "n": p.size,
                    "types": f"{case.p_type},{case.g_type}", "tables": int(case.tables is not None)}
        for name in ("lr", "beta1", "beta2", "beta3", "eps", "wd", "scale", "unorm", "alpha", "alpha_steps",
                     "beta3_steps", "mode", "state_block"):
            settings[name] = getattr(case, name)
        if case.tables is not None:
            case.tables.astype(np.float32).tofile(self.prefix + ".t")
        done = subprocess.run([self.path, self.prefix, *(f"{key}={value}" for key, value in settings.items())],
                              stdout=subprocess.PIPE, text=True,
                              env=dict(os.environ, **({"BITSHARD_SIMD": simd} if simd else {})))
        assert done.returncode == 0, f"step_tool: {done.returncode} for {case}"
        self.printed = done.stdout.splitlines()
        assert self.printed[0] == simd or not simd, f"ran on {self.printed[0]}, not on {simd}"
        return self._read(case, p.size)

    def _read(self, case: Case, n: int) -> dict:
        raw = np.fromfile(self.prefix + ".out", np.uint8)
        blocks, at, out = -(-n // case.state_block), 0, {}
        parts = [("p", np.float32, n)]
        for state in STATES[:case.num_states()]:
            parts += ([(state, np.uint8, n), (state + "a", np.float32, blocks)] if case.bits == 8 else
                      [(state, np.float32, n)])
        if case.mode == "master":
            parts.append(("master", np.float32, n))
        for name, dtype, count in parts:
            size = count * np.dtype(dtype).itemsize
            out[name] = raw[at:at + size].view(dtype)
            at += size
        assert at == raw.size, f"{case}: {raw.size} bytes, want {at}"
        return out
