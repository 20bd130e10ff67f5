"""Killed at random moments and resumed, also at another world size: final weights and every step's numbers are those
of the run that was never stopped."""
import argparse
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time

from tiny_run import HUNG, Runner, exact_lines, make_material, one_error, rank_pids, same_adapter, wait_for


def kill_once(runner: Runner, name: str, victim: int | None, after: float) -> tuple[bool, str]:
    """Starts a run on two ranks and kills rank `victim` (None: mpirun) `after` seconds later, or as soon as there are
    ranks. Returns whether that ended the run, and what it printed."""
    began = time.monotonic()
    job = runner.start(2, name)
    wait_for(lambda: job.poll() is not None or
             (time.monotonic() - began >= after and len(rank_pids(runner.binary, name)) == 2), HUNG, "the time to kill")
    pids = rank_pids(runner.binary, name)
    try:
        pid = pids[victim] if victim is not None else parent_of(pids[0])
        os.kill(pid, signal.SIGKILL)
    except (IndexError, OSError):
        pass  # The run was faster; its exit code says so.
    killed = time.monotonic()
    text, _ = job.communicate(timeout=HUNG)
    wait_for(lambda: not rank_pids(runner.binary, name), 15, "all ranks to be gone")
    seconds = time.monotonic() - killed
    assert seconds < 15 or job.returncode == 0, f"the job outlives a dead rank by {seconds:.1f} s"
    return job.returncode != 0, text


def parent_of(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def killed_and_resumed(runner: Runner, seed: int, number: int, seconds: float) -> None:
    """Kill `number` of the seed, at a random time of a run that takes `seconds`; every fourth is of mpirun itself."""
    rng = random.Random(f"{seed} {number}")
    name = f"killed{number}-"
    victim = None if number % 4 == 1 else rng.randrange(2)
    after = rng.random() * seconds
    what = f"seed {seed}, kill {number}: {'mpirun' if victim is None else f'rank {victim}'}"
    for _ in range(20):
        killed, text = kill_once(runner, name, victim, after)
        if killed:
            break
        shutil.rmtree(runner.output(name))
        after *= 0.9
    assert killed, f"{what}: the run ended before it could be killed"
    what += f" killed after {after:.2f} of {seconds:.2f} s"
    if victim is not None:
        assert re.search(rf"process rank {victim} .*signal 9", text), f"{what}: not named:\n{text}"
    saved = [path.name for path in runner.output(name).glob("checkpoint-*")]
    resumed = rng.choice([1, 2, 3])
    runner.run(resumed, name, {"resume_from_checkpoint": "auto"})
    same_adapter(what, runner.adapter("whole"), runner.adapter(name))
    assert exact_lines(runner.lines(name)) == exact_lines(runner.lines("whole")), f"{what}: metrics differ"
    left = [path.name for path in runner.output(name).iterdir() if ".tmp." in path.name]
    assert not left, f"{what}: left {left}"
    print(f"{what}, {len(saved)} checkpoints there, resumed on {resumed} ranks: same bits", flush=True)
    shutil.rmtree(runner.output(name))


def stopped_by_signal(runner: Runner) -> None:
    """SIGTERM to the launcher: the step ends, a checkpoint is saved, exit code 143, and --resume goes on."""
    settings = runner.long_evaluation(1000)  # After each step: eight more of them take seconds.
    job = runner.start(2, "asked", {**settings, "eval_steps": 1})
    lines = runner.output("asked") / "metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n") >= 4, HUNG, "4 steps")
    job.send_signal(signal.SIGTERM)
    text, _ = job.communicate(timeout=HUNG)
    assert job.returncode == 143, f"exit code {job.returncode}\n{text}"
    one_error(text, "steps are saved in", "go on with --resume")
    runner.run(2, "asked", settings, "--resume")
    same_adapter("asked to stop and resumed", runner.adapter("whole"), runner.adapter("asked"))
    print("SIGTERM: saved, 143, resumed: same bits")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="200 kills, where BITSHARD_TEST_ALL=1")
    args = parser.parse_args()
    if args.long:
        args.kills = 200
        if os.environ.get("BITSHARD_TEST_ALL") != "1":
            print("skipped: 200 kills take an hour; set BITSHARD_TEST_ALL=1, or run tests/run.sh --all")
            sys.exit(77)
    # Fresh moments each time; BITSHARD_KILL_SEED repeats those of a run that failed.
    seed = int(os.environ.get("BITSHARD_KILL_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"BITSHARD_KILL_SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_material(folder)
        runner = Runner(args.binary, args.source, folder)
        runner.run(2, "whole")  # Makes the token caches.
        began = time.monotonic()
        runner.run(2, "timed")
        seconds = time.monotonic() - began
        same_adapter("run twice", runner.adapter("whole"), runner.adapter("timed"))
        for number in range(args.kills):
            killed_and_resumed(runner, seed, number, seconds)
        stopped_by_signal(runner)


if __name__ == "__main__":
    main()
