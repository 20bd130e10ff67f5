#!/usr/bin/env python3
"""The 8-bit optimizers and codecs beside torch's fused AdamW, torch's copy and bitsandbytes on the CPU.

    bench/run.sh optim [--targets AVX2,AVX3_DL] [--seconds 20] [--only adamw_8bit,dequantize_nf4]

Every line is a ratio of one run: the sides take turns, a few short repeats each, on two threads, and the fastest
repeat of each side counts. Our kernels are forced to each of --targets (by default AVX2 and the best that there is) in
turn; torch and bitsandbytes choose their own best.

    adamw_8bit vs torch_fused_adamw n=16777216 target=AVX2 ns=0.50/0.42 ratio 1.19
    dequantize_8bit vs torch_copy n=16777216 target=AVX2 GB/s=20.1/24.0 share 0.84

ns are of wall time an element, GB/s counts bytes read and written. A repeat counts only if the process had its cores: its
CPU time was nearly its wall time on both. A pair goes on until both sides have such repeats; if --seconds pass before,
its figures are of CPU time and the line ends in "machine busy, no verdict".
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
THREADS = 2
HAD_ITS_CORES = 0.93  # CPU time over wall time x threads; the rest is waking the second thread.
LARGE, CACHED = 1 << 24, 1 << 20


class Server:
    """A process that runs sides: optim_bench or peer.py."""

    def __init__(self, command: list[object], **environment: str) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "OMP_NUM_THREADS": str(THREADS), **environment})
        self.about = self.read()

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line: str) -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Side:
    """The repeats of one side."""

    def __init__(self, server: Server, name: str, n: int) -> None:
        self.server, self.name, self.n = server, name, n
        self.undisturbed: list[float] = []
        self.cpu: list[float] = []

    def run(self) -> None:
        # At least 10 ms a turn, so that a turn is not all waking up.
        repeats = max(2, (1 << 22) // self.n)
        answer = self.server.ask(f"{self.name} {self.n} {repeats}")
        for wall, cpu in zip(answer["seconds"], answer["cpu_seconds"], strict=True):
            self.cpu.append(cpu / THREADS)
            if cpu >= HAD_ITS_CORES * THREADS * wall:
                self.undisturbed.append(wall)

    def enough(self) -> bool:
        return len(self.undisturbed) >= 5

    def ns(self, is_busy: bool) -> float:
        return 1e9 * min(self.cpu if is_busy else self.undisturbed) / self.n


def measure(sides: list[Side], seconds: float) -> bool:
    """Runs the sides in turn; returns whether the machine was busy."""
    start = time.monotonic()
    turns = 0
    while turns < 5 or (time.monotonic() - start < seconds and not all(side.enough() for side in sides)):
        for side in sides:
            side.run()
        turns += 1
    for server in {side.server for side in sides}:
        server.ask("forget")
    return not all(side.enough() for side in sides)


def bytes_per_element(name: str) -> float:
    """Read and written."""
    if name == "torch_copy":
        return 8
    return 4 + (0.5 + 4 / 64 if name.endswith("nf4") else 1 + 4 / 256)


def line(ours: Side, peer: Side, target: str, is_busy: bool) -> str:
    ns = ours.ns(is_busy), peer.ns(is_busy)
    text = f"{ours.name} vs {peer.name} n={ours.n} target={target} "
    if peer.name == "torch_copy":
        speeds = [bytes_per_element(side.name) / each for side, each in zip((ours, peer), ns, strict=True)]
        text += f"GB/s={speeds[0]:.1f}/{speeds[1]:.1f} share {speeds[0] / speeds[1]:.2f}"
    else:
        text += f"ns={ns[0]:.2f}/{ns[1]:.2f} ratio {ns[0] / ns[1]:.2f}"
    return text + ("; machine busy, no verdict" if is_busy else "")


def comparisons(adapter_elems: int) -> list[tuple[str, int, list[tuple[str, str]]]]:
    """Our side, its elements, and its peers: (server, side)."""
    steps = [("adamw_8bit", LARGE, [("ours", "torch_fused_adamw"), ("bitsandbytes", "bitsandbytes_adamw8bit")]),
             ("adamw_8bit", CACHED, [("ours", "torch_fused_adamw")]),
             ("lion_8bit", LARGE, [("ours", "torch_fused_adamw")]),
             ("lion_8bit", CACHED, [("ours", "torch_fused_adamw")]),
             ("adamw_8bit_420_tensors", adapter_elems, [("ours", "adamw_8bit")])]
    codecs = ["quantize_8bit", "dequantize_8bit", "quantize_nf4", "dequantize_nf4"]
    return steps + [(name, LARGE, [("ours", "torch_copy"), ("bitsandbytes", f"bitsandbytes_{name}")])
                    for name in codecs]


def targets_of_machine() -> list[str]:
    server = Server([ROOT / "build/cpu/bench/optim/optim_bench"])
    best = server.about["target"]
    server.end()
    return [best] if best == "AVX2" or not best.startswith("AVX") else ["AVX2", best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", help="SIMD targets of our side; default: AVX2 and the best one of this machine")
    parser.add_argument("--seconds", type=float, default=20, help="for each comparison, before the machine is called busy")
    parser.add_argument("--only", help="names of our sides; default: all")
    args = parser.parse_args()
    cpu = next(text.split(":")[1].strip() for text in open("/proc/cpuinfo", encoding="ascii") if "model name" in text)
    peer = Server([sys.executable, pathlib.Path(__file__).with_name("peer.py")])
    print(f"{cpu}, {THREADS} threads, bitsandbytes {peer.about['version']}", flush=True)
    for target in args.targets.split(",") if args.targets else targets_of_machine():
        servers = {"ours": Server([ROOT / "build/cpu/bench/optim/optim_bench"], BITSHARD_SIMD=target),
                   "bitsandbytes": peer}
        for name, n, peers in comparisons(servers["ours"].about["adapter_elems"]):
            if args.only and name not in args.only.split(","):
                continue
            for server, peer_name in peers:
                ours, theirs = Side(servers["ours"], name, n), Side(servers[server], peer_name, n)
                is_busy = measure([ours, theirs], args.seconds)
                print(line(ours, theirs, target, is_busy), flush=True)
        servers["ours"].end()
    peer.end()


if __name__ == "__main__":
    main()
