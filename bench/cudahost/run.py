#!/usr/bin/env python3
"""What the memory checker of the stand-in for CUDA costs: CPU time of kernels, checked against plain.

  bench/run.sh cudahost [--seeds N]

Both programs run side by side and take turns, launch by launch, in the same orders of blocks and threads; of each
kernel the best of N launches counts. Prints for each kernel both times, their ratio, and the ratio of all together.
"""
import argparse
import pathlib
import subprocess

KERNELS = ("adamw_8bit", "adamw_32bit", "lion_8bit", "quantize_8bit", "dequantize_8bit", "quantize_nf4",
           "dequantize_nf4", "tree_sum")
FOLDER = pathlib.Path(__file__).parents[2] / "build/cpu/bench/cudahost"


def start(flavour):
    return subprocess.Popen([FOLDER / f"cudahost_bench_{flavour}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)


def launch_ms(process, kernel, seed):
    process.stdin.write(f"{kernel} {seed}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"run.py: {process.args[0]} ended during {kernel}")
    return int(answer) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(1, parser.parse_args().seeds + 1)
    checked, plain = start("host"), start("host_plain")
    best = {kernel: [float("inf"), float("inf")] for kernel in KERNELS}
    for seed in seeds:
        for kernel in KERNELS:
            for side, process in enumerate((checked, plain)):
                best[kernel][side] = min(best[kernel][side], launch_ms(process, kernel, seed))
    print(f"{'kernel':<16} {'checked ms':>10} {'plain ms':>10} {'ratio':>6}")
    for kernel, (a, b) in best.items():
        print(f"{kernel:<16} {a:>10.1f} {b:>10.1f} {a / b:>6.2f}")
    a, b = (sum(times[side] for times in best.values()) for side in (0, 1))
    print(f"{'all':<16} {a:>10.1f} {b:>10.1f} {a / b:>6.2f}")
    for process in (checked, plain):
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
