#!/usr/bin/env python3
"""Does 8-bit state train as well? The quickstart's finetuning with each optimizer and several seeds.

    bench/run.sh state_bits [--seeds 3] [--steps 20] [--runs runs/state_bits] [--write docs]

Runs configs/quickstart.yaml with adamw_32bit, adamw_8bit, paged_adamw_8bit (state in a file, 1 MiB of it in memory at
a time), lion_32bit and lion_8bit, the same seeds for each, and prints the held-out loss after training: every seed's, the
mean, and the standard deviation over seeds. Lion has a fifth of AdamW's learning rate. A run that is already under --runs
with the same number of steps is not repeated. --write FOLDER: the table and the plot as FOLDER/state_bits.md and FOLDER/state_bits.svg.
Losses do not depend on how busy the machine is. About 5 minutes a run on 2 cores.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORES = len(os.sched_getaffinity(0))
PAGED = ["--set", "paging.tier=file", "--set", "paging.budget=1MiB"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    optimizer: str
    learning_rate: str
    settings: tuple[str, ...] = ()


CANDIDATES = [Candidate("adamw_32bit", "5e-4"), Candidate("adamw_8bit", "5e-4"),
              Candidate("paged_adamw_8bit", "5e-4", tuple(PAGED)), Candidate("lion_32bit", "1e-4"),
              Candidate("lion_8bit", "1e-4")]


def summary_of(folder: pathlib.Path, steps: int) -> dict | None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return summary if summary.get("steps") == steps else None


def run(candidate: Candidate, seed: int, steps: int, runs: pathlib.Path) -> dict:
    folder = runs / f"{candidate.optimizer}-{seed}"
    summary = summary_of(folder, steps)
    if summary is not None:
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"optimizer": candidate.optimizer, "learning_rate": candidate.learning_rate, "seed": seed, "max_steps": steps,
                "output_dir": folder, "save_steps": 0, "generate.heldout_prompts": 0, "report_to": "[jsonl]",
                "resume_from_checkpoint": "auto"}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        status = subprocess.run(
            [ROOT / "launch/mpirun.sh", "-n", str(CORES), "--", ROOT / "build/cpu/trainer/bitshard", "train", "--config",
             ROOT / "configs/quickstart.yaml", *candidate.settings,
             *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))],
            cwd=ROOT, stdout=log, stderr=log, check=False).returncode
    summary = summary_of(folder, steps)
    if status != 0 or summary is None:
        sys.exit(f"{candidate.optimizer}, seed {seed}: exit status {status}; see {folder / 'log.txt'}")
    return summary


@dataclasses.dataclass
class Result:
    candidate: Candidate
    before: float
    after: list[float]

    def mean(self) -> float:
        return statistics.fmean(self.after)

    def spread(self) -> float:
        return statistics.stdev(self.after) if len(self.after) > 1 else 0.0


def table(results: list[Result], seeds: list[int]) -> str:
    lines = ["| optimizer | learning rate | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | deviation |",
             "|---" * (len(seeds) + 4) + "|"]
    for result in results:
        lines.append(f"| {result.candidate.optimizer} | {result.candidate.learning_rate} | "
                     + " | ".join(f"{loss:.5f}" for loss in result.after)
                     + f" | {result.mean():.5f} | {result.spread():.5f} |")
    return "\n".join(lines) + "\n"


def plot(results: list[Result]) -> str:
    """An SVG: a row an optimizer, a dot a seed, a bar for the mean."""
    left, width, row, top = 150, 640, 44, 40
    losses = [loss for result in results for loss in result.after]
    margin = max(0.005, (max(losses) - min(losses)) * 0.15)
    low, high = min(losses) - margin, max(losses) + margin

    def x(loss: float) -> float:
        return left + (loss - low) / (high - low) * (width - left - 30)

    bottom = top + row * len(results)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 50}" font-family="sans-serif" '
             'font-size="13">', '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="{left}" y="22">held-out loss after training, nats per token: a dot a seed, a bar for the mean</text>']
    for tick in range(5):
        loss = low + (high - low) * tick / 4
        parts += [f'<line x1="{x(loss):.1f}" y1="{top}" x2="{x(loss):.1f}" y2="{bottom}" stroke="#ddd"/>',
                  f'<text x="{x(loss):.1f}" y="{bottom + 18}" text-anchor="middle">{loss:.3f}</text>']
    for index, result in enumerate(results):
        y = top + row * index + row / 2
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{result.candidate.optimizer}</text>')
        parts.append(f'<line x1="{x(result.mean()):.1f}" y1="{y - 14:.1f}" x2="{x(result.mean()):.1f}" y2="{y + 14:.1f}" '
                     'stroke="#c33" stroke-width="2"/>')
        parts += [f'<circle cx="{x(loss):.1f}" cy="{y:.1f}" r="4.5" fill="#36c" fill-opacity="0.7"/>' for loss in result.after]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs/state_bits")
    parser.add_argument("--write", type=pathlib.Path, help="folder for state_bits.md and state_bits.svg")
    args = parser.parse_args()
    seeds = list(range(1, args.seeds + 1))
    results = []
    for candidate in CANDIDATES:
        summaries = []
        for seed in seeds:
            summaries.append(run(candidate, seed, args.steps, args.runs.resolve()))
            print(f"{candidate.optimizer}, seed {seed}: held-out loss {summaries[-1]['heldout_loss_before']:.4f} -> "
                  f"{summaries[-1]['heldout_loss_after']:.4f}", flush=True)
        results.append(Result(candidate, summaries[0]["heldout_loss_before"], [s["heldout_loss_after"] for s in summaries]))
    text = f"Held-out loss of the base {results[0].before:.4f}, after {args.steps} steps:\n\n" + table(results, seeds)
    print("\n" + text, end="")
    if args.write:
        (args.write / "state_bits.md").write_text(text, encoding="utf-8")
        (args.write / "state_bits.svg").write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
