"""bitsandbytes on the CPU, one side of a comparison at a time: the protocol of optim_bench.cc. Started by run.py."""
import json
import sys
import time
from typing import Callable

import bitsandbytes
import bitsandbytes.functional as F
import torch


def adamw8bit(n: int) -> Callable[[], object]:
    parameter = torch.nn.Parameter(torch.randn(n) * 0.02)
    parameter.grad = torch.randn(n) * 1e-3
    return bitsandbytes.optim.AdamW8bit([parameter], lr=1e-6, weight_decay=0.01).step


def quantize_8bit(n: int) -> Callable[[], object]:
    x = torch.randn(n)
    return lambda: F.quantize_blockwise(x, blocksize=256)


def dequantize_8bit(n: int) -> Callable[[], object]:
    codes, state = F.quantize_blockwise(torch.randn(n), blocksize=256)
    return lambda: F.dequantize_blockwise(codes, state)  # Its form with `out` is not there on a CPU.


def quantize_nf4(n: int) -> Callable[[], object]:
    x = torch.randn(n)
    return lambda: F.quantize_4bit(x, blocksize=64, quant_type="nf4")


def dequantize_nf4(n: int) -> Callable[[], object]:
    packed, state = F.quantize_4bit(torch.randn(n), blocksize=64, quant_type="nf4")
    return lambda: F.dequantize_4bit(packed, state)


def main() -> None:
    makers = {"bitsandbytes_" + f.__name__: f
              for f in (adamw8bit, quantize_8bit, dequantize_8bit, quantize_nf4, dequantize_nf4)}
    sides: dict[tuple[str, int], Callable[[], object]] = {}
    print(json.dumps({"threads": torch.get_num_threads(), "version": bitsandbytes.__version__}), flush=True)
    for line in sys.stdin:
        if line.strip() == "forget":
            sides.clear()
            print("{}", flush=True)
            continue
        name, n, repeats = line.split()
        key = name, int(n)
        if key not in sides:
            sides[key] = makers[name](int(n))
            sides[key]()
        seconds, cpu_seconds = [], []
        for _ in range(int(repeats)):
            wall, cpu = time.monotonic(), time.process_time()
            sides[key]()
            seconds.append(time.monotonic() - wall)
            cpu_seconds.append(time.process_time() - cpu)
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
