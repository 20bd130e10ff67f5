#!/usr/bin/env python3
"""Shows what a run came to, from the files that it left.

    launch/show_run.py [--answers] runs/quickstart

Reads summary.json, answers.json and, where there is one, unquantised.txt (the output of `bitshard evaluate` on the
base in full precision). Needs nothing but Python's standard library.
Exit status 1: the held-out loss fell by less than 0.3 nats per token.
"""
import argparse
import json
import pathlib
import re
import sys
import textwrap

PROMISED_DROP = 0.3  # Nats per token that the quickstart's held-out loss falls by, at least.


def loss_lines(summary: dict, unquantised: str) -> list[str]:
    before, after = summary.get("heldout_loss_before"), summary.get("heldout_loss_after")
    found = re.search(r"held-out loss: ([0-9.]+)", unquantised)
    rows = [("base, not quantised", float(found.group(1)) if found else None), ("base as trained on (4-bit)", before),
            (f"after {summary['steps']} steps", after)]
    lines = [f"  {name:<28}{value:.4f}" for name, value in rows if value is not None]
    if before is not None and after is not None:
        lines[-1] += f"   ({before - after:.4f} lower)"
    return ["held-out loss, nats per token:", *lines] if lines else []


def kept_promise(summary: dict) -> int:
    """0 where training lowered the held-out loss as far as it should, or where it was not measured."""
    before, after = summary.get("heldout_loss_before"), summary.get("heldout_loss_after")
    if before is None or after is None or before - after >= PROMISED_DROP:
        return 0
    print(f"show_run.py: the held-out loss fell by {before - after:.4f} nats a token, want at least {PROMISED_DROP}: "
          "the run has not learnt what it should; see its metrics.jsonl", file=sys.stderr)
    return 1


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def answer_lines(answers: list[dict]) -> list[str]:
    lines = []
    for answer in answers:
        lines += ["", f"Q: {answer['prompt']}"]
        for when in ("before", "after"):
            lines.append(textwrap.fill(answer[when], 110, initial_indent=f"  {when + ':':<8}", subsequent_indent=" " * 10))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", action="store_true", help="the answers before and after training too")
    parser.add_argument("run", type=pathlib.Path, help="the run's output_dir")
    args = parser.parse_args()
    run = args.run
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"{error}: the run has not ended yet, or it failed")
    unquantised, answers = run / "unquantised.txt", run / "answers.json"
    lines = []
    if args.answers and answers.exists():
        lines += [*answer_lines(json.loads(answers.read_text(encoding="utf-8"))), ""]
    lines += loss_lines(summary, unquantised.read_text(encoding="utf-8") if unquantised.exists() else "")
    megabytes = {key: summary[key] / 1e6 for key in ("peak_rss_bytes", "planned_peak_rss_bytes")}
    lines += [
        f"{summary['tokens_per_second']:.0f} tokens/s on {counted(summary['world_size'], 'rank')} of "
        f"{counted(summary['threads_per_rank'], 'thread')}, in {summary['compute_type']}: "
        f"{summary['seconds']:.0f} s of steps",
        f"peak memory of a rank {megabytes['peak_rss_bytes']:.0f} MB, planned {megabytes['planned_peak_rss_bytes']:.0f} MB",
        f"the adapter, as PEFT loads it: {run}/adapter"]
    print("\n".join(lines))
    return kept_promise(summary)


if __name__ == "__main__":
    sys.exit(main())
