"""Killed at random moments and resumed, also at another world size: final weights and every step's numbers are those
of the run that was never stopped."""
import argparse
import os
import pathlib
import random
import signal
import tempfile
import time

from tiny_run import Runner, exact_lines, make_material, rank_pids, same_adapter, wait_for


def killed_and_resumed(runner: Runner, seed: int) -> None:
    rng = random.Random(seed)
    name = f"killed{seed}"
    job = runner.start(2, name)
    wait_for(lambda: len(rank_pids(runner.binary, name)) == 2, 20, "two ranks")
    lines = runner.output(name) / "metrics.jsonl"
    after = rng.randrange(0, 11)
    wait_for(lambda: job.poll() is not None or (lines.exists() and lines.read_text().count("\n") >= after), 60,
             f"{after} steps")
    time.sleep(rng.random() * 0.2)
    whole_job = rng.random() < 0.3
    pids = rank_pids(runner.binary, name)
    began = time.monotonic()
    rank = rng.randrange(2)
    if len(pids) == 2 and not whole_job:
        os.kill(pids[rank], signal.SIGKILL)
    elif len(pids) == 2:
        parent = int(pathlib.Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(parent, signal.SIGKILL)  # mpirun itself
    text, _ = job.communicate(timeout=30)
    wait_for(lambda: not rank_pids(runner.binary, name), 10, "all ranks to be gone")
    assert time.monotonic() - began < 10, "the job outlives a dead rank by more than 10 s"
    if len(pids) == 2:
        assert job.returncode != 0, text
        if not whole_job:
            assert f"rank {rank}" in text, f"the message does not name rank {rank}:\n{text}"
    resumed = rng.choice([1, 2, 3])
    runner.run(resumed, name, {"resume_from_checkpoint": "auto"})
    same_adapter(f"seed {seed}: killed after {after} steps, resumed on {resumed} ranks", runner.adapter("whole"),
                 runner.adapter(name))
    assert exact_lines(runner.lines(name)) == exact_lines(runner.lines("whole")), f"seed {seed}: metrics differ"
    print(f"seed {seed}: {'mpirun' if whole_job else f'rank {rank}'} killed after {after} steps, "
          f"resumed on {resumed} ranks: same bits")


def stopped_by_signal(runner: Runner) -> None:
    """SIGTERM to the launcher: the step ends, a checkpoint is saved, exit code 143, and --resume goes on."""
    job = runner.start(2, "asked", {"max_steps": 12})
    lines = runner.output("asked") / "metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n") >= 4, 60, "4 steps")
    job.send_signal(signal.SIGTERM)
    text, _ = job.communicate(timeout=30)
    assert job.returncode == 143, f"exit code {job.returncode}\n{text}"
    assert "--resume" in text, text
    runner.run(2, "asked", {}, "--resume")
    same_adapter("asked to stop and resumed", runner.adapter("whole"), runner.adapter("asked"))
    print("SIGTERM: saved, 143, resumed: same bits")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--kills", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_material(folder)
        runner = Runner(args.binary, args.source, folder)
        runner.run(2, "whole")
        for seed in range(args.kills):
            killed_and_resumed(runner, seed)
        stopped_by_signal(runner)


if __name__ == "__main__":
    main()
