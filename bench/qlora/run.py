#!/usr/bin/env python3
"""The QLoRA step beside transformers + PEFT + bitsandbytes: tokens/s, peak memory, and the ratios of one run.

    bench/run.sh qlora [--compute-types fp32,bf16] [--rounds 3] [--steps 3] [--checkpointing off|on|both]

SmolLM2-135M-Instruct, NF4 with double quantisation, LoRA r 16 on all linear layers, AdamW 8-bit, 4 samples of 256
tokens a step, every token trained, on all cores of this machine. Both sides get the same weights and the same four
texts at every step, so their losses can be compared. A round is `bitshard train` from its start for some steps, then
as many steps of the peer, which stays loaded; the fastest step of each side counts. The peer runs twice: as it comes, and with the
malloc policy that bitshard sets for itself (mmap threshold 64 KiB, one arena), which changes its memory and speed.

Timings are only worth something on an idle machine: what other processes took is printed for each round, and with
more than 5% there is no verdict.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BITSHARD = ROOT / "build/cpu/trainer/bitshard"
MODEL = ROOT / ".deps/models/SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, SEQUENCE_LEN, LEARNING_RATE = 4, 256, 2e-4
MALLOC_POLICY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
CORES = len(os.sched_getaffinity(0))
BUSY = 0.05


def has_bf16() -> bool:
    return "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii").split()


def write_texts(path: pathlib.Path) -> None:
    """Four texts of more than SEQUENCE_LEN tokens: entries of the Jargon File in a row."""
    texts, text = [], ""
    with open(ROOT / "data/jargon/train.jsonl", encoding="utf-8") as file:
        for line in file:
            text += json.loads(line)["messages"][-1]["content"] + "\n"
            if len(text) > 10 * SEQUENCE_LEN:
                texts.append(text)
                text = ""
            if len(texts) == BATCH:
                break
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def settings(folder: pathlib.Path, compute_type: str, checkpointing: bool, steps: int) -> list[str]:
    values = {
        "base_model": folder / "model", "datasets": f"[{{path: {folder}/texts.jsonl, type: text}}]",
        "sequence_len": SEQUENCE_LEN, "sample_packing": "false", "excess_length_strategy": "truncate",
        "micro_batch_size": BATCH, "global_batch_size": BATCH, "max_steps": steps, "learning_rate": LEARNING_RATE,
        "lr_scheduler": "constant", "compute_type": compute_type,
        "activation_checkpointing": str(checkpointing).lower(), "save_steps": 0, "output_dir": folder / "run",
        "generate.heldout_prompts": 0, "report_to": "[jsonl]"}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


class Machine:
    """CPU time of all processes since the last call, in seconds."""

    def __init__(self) -> None:
        self.last = self.read()

    @staticmethod
    def read() -> float:
        fields = [int(x) for x in pathlib.Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = fields[:8]
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    def lap(self) -> float:
        now = self.read()
        spent, self.last = now - self.last, now
        return spent


class Side:
    """The steps of one trainer over all rounds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.tokens = BATCH * SEQUENCE_LEN
        self.peak_rss_bytes = 0

    def line(self, steps: int) -> str:
        """`steps`: of a round. bitshard starts anew in each, the peer goes on: only the first round's losses compare."""
        return (f"{self.name:<44} {self.tokens / min(self.seconds):7.1f} tokens/s   peak {self.peak_rss_bytes / 1e9:.2f} GB"
                f"   loss {self.losses[0]:.3f} -> {self.losses[steps - 1]:.3f}")


def run_bitshard(folder: pathlib.Path, arguments: list[str], side: Side) -> float:
    """Trains from the start; returns the CPU seconds of the process."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "empty.yaml").write_text("", encoding="utf-8")
    with open(folder / "bitshard.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen([BITSHARD, "train", "--config", folder / "empty.yaml", *arguments], stdout=log,
                                   stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(CORES)})
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"bitshard train failed:\n{(folder / 'bitshard.log').read_text(encoding='utf-8')}")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = json.loads((folder / "run/summary.json").read_text(encoding="utf-8"))
    steps = [line for line in lines if "step_seconds" in line]
    side.seconds += [line["step_seconds"] for line in steps]
    side.losses = [line["loss"] for line in steps]
    side.tokens = steps[0]["tokens"]
    side.peak_rss_bytes = max(side.peak_rss_bytes, summary["peak_rss_bytes"])
    return usage.ru_utime + usage.ru_stime


class Peer(Side):
    def __init__(self, name: str, folder: pathlib.Path, compute_type: str, checkpointing: bool, policy: bool) -> None:
        super().__init__(name)
        self.log = open(folder / "peer.log", "w", encoding="utf-8")
        self.log_path = folder / "peer.log"
        self.process = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).with_name("peer.py"), "--model", folder / "model", "--texts",
             folder / "texts.jsonl", "--sequence-len", str(SEQUENCE_LEN), "--compute-type", compute_type,
             "--learning-rate", str(LEARNING_RATE), *(["--checkpointing"] if checkpointing else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(CORES), **(MALLOC_POLICY if policy else {})})
        self.tokens = self.read()["tokens"]

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the peer ended:\n{self.log_path.read_text(encoding='utf-8')}")
        return json.loads(line)

    def steps(self, count: int) -> float:
        cpu = 0.0
        for _ in range(count):
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
            step = self.read()
            self.seconds.append(step["seconds"])
            self.losses.append(step["loss"])
            cpu += step["cpu_seconds"]
        return cpu

    def end(self) -> None:
        self.process.stdin.close()
        self.peak_rss_bytes = self.read()["peak_rss_bytes"]
        self.process.wait()


def compare(folder: pathlib.Path, compute_type: str, checkpointing: bool, args: argparse.Namespace) -> None:
    how = f"{compute_type}, activation checkpointing {'on' if checkpointing else 'off'} on both sides"
    print(f"\n{how}", flush=True)
    ours = Side("bitshard")
    peers = [Peer("transformers + PEFT + bitsandbytes", folder, compute_type, checkpointing, False),
             Peer("the same with bitshard's malloc policy", folder, compute_type, checkpointing, True)]
    arguments = settings(folder, compute_type, checkpointing, args.steps)
    run_bitshard(folder, arguments, Side("warm-up"))  # Makes the token cache; reads the files once.
    most_foreign = 0.0
    for number in range(args.rounds):
        shares = []
        machine = Machine()
        for run in (lambda: run_bitshard(folder, arguments, ours), *(lambda p=p: p.steps(args.steps) for p in peers)):
            started = time.monotonic()
            machine.lap()
            own = run()
            shares.append(max(0.0, machine.lap() - own) / ((time.monotonic() - started) * CORES))
        most_foreign = max(most_foreign, *shares)
        print(f"  round {number + 1}: others took {', '.join(f'{100 * share:.0f}%' for share in shares)} of the cores", flush=True)
    for peer in peers:
        peer.end()
    for side in (ours, *peers):
        print("  " + side.line(args.steps))
    for peer in peers:
        speed = min(peer.seconds) / min(ours.seconds) * ours.tokens / peer.tokens
        print(f"qlora {compute_type} vs {peer.name}: ratio {speed:.2f} of the speed, "
              f"{ours.peak_rss_bytes / peer.peak_rss_bytes:.2f} of the memory"
              + ("; machine busy, no verdict" if most_foreign > BUSY else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute-types", default="fp32,bf16" if has_bf16() else "fp32",
                        help="default: fp32, and bf16 where the processor multiplies it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of each side in a round")
    parser.add_argument("--checkpointing", choices=("off", "on", "both"), default="off")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        folder = pathlib.Path(name)
        write_texts(folder / "texts.jsonl")
        (folder / "empty.yaml").write_text("", encoding="utf-8")
        # Both sides quantise this folder: the model's weights in float32, as transformers reads them.
        subprocess.run([BITSHARD, "quantize", "--config", folder / "empty.yaml", "--set", f"base_model={MODEL}", "--set",
                        "adapter=lora", "--set", "load_in_4bit=false", "--export", "hf", "--output", folder / "model"],
                       check=True, stdout=subprocess.DEVNULL)
        cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo", encoding="ascii") if "model name" in line)
        print(f"{cpu}, {CORES} cores; {BATCH} x {SEQUENCE_LEN} tokens a step")
        for compute_type in args.compute_types.split(","):
            for checkpointing in {"off": [False], "on": [True], "both": [False, True]}[args.checkpointing]:
                compare(folder, compute_type, checkpointing, args)


if __name__ == "__main__":
    main()
