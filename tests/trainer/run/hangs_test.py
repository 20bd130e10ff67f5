"""A rank that is stopped, whichever it is and whenever, is found by our own deadline and named; nobody waits for ever."""
import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable

from tiny_run import HUNG, Runner, one_error, rank_pids, run_checks, wait_for

# Seconds: comm.timeout of these runs. So much may the sound ranks be apart on a busy machine; none of them starts
# Python, which alone can take so long there.
TIMEOUT = 8


def state(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "gone"


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid) == "T", 60, f"process {pid} to stop")


def ended_after_stop(runner: Runner, job: subprocess.Popen, name: str, pid: int) -> str:
    """A process has been stopped: the job must end with 5 by itself, soon after the deadline. Returns its one
    message."""
    began = time.monotonic()
    try:
        text, _ = job.communicate(timeout=HUNG)
    except subprocess.TimeoutExpired:
        states = {rank: state(rank) for rank in rank_pids(runner.binary, name)}
        raise AssertionError(f"{name}: still there; stopped was {pid}, states now are {states}") from None
    seconds = time.monotonic() - began
    assert job.returncode == 5, f"{name}: exit code {job.returncode}\n{text}"
    assert seconds < TIMEOUT + 15, f"{name}: ended {seconds:.1f} s after the stop"
    wait_for(lambda: not rank_pids(runner.binary, name), 15, "all ranks to be gone")
    return one_error(text)


def stop_rank(runner: Runner, rank: int, name: str, settings: dict, when: str, is_time: Callable[[], object]) -> None:
    """Stops `rank` of two once is_time() holds; the other one names it."""
    job = runner.start(2, name, {"max_steps": 100000, "comm.timeout": TIMEOUT, "generate.heldout_prompts": 0,
                                 **settings})
    wait_for(lambda: job.poll() is not None or is_time(), HUNG, when)
    pids = rank_pids(runner.binary, name)
    assert len(pids) == 2, f"{name} ended early:\n{job.communicate(timeout=HUNG)[0]}"
    stop(pids[rank])
    message = ended_after_stop(runner, job, name, pids[rank])
    assert re.search(rf"\brank {rank} on \S+ (did not arrive|arrived but stopped)", message), message
    print(f"rank {rank} stopped {when}: exit code 5, named")


def check_ranks(runner: Runner) -> None:
    def folder(name: str) -> pathlib.Path:
        return runner.output(name)

    def steps(name: str) -> bool:
        lines = folder(name) / "metrics.jsonl"
        return lines.exists() and lines.read_text().count("\n") > 2

    runner.run(2, "warm", {"max_steps": 1})  # From now on the cache is there.
    for rank in (0, 1):
        name = f"steps{rank}"
        stop_rank(runner, rank, name, {"save_steps": 0}, "in the steps", lambda name=name: steps(name))
        name = f"start{rank}"
        stop_rank(runner, rank, name, {}, "at its start", lambda name=name: (folder(name) / ".lock").exists())
    stop_rank(runner, 0, "saving", {"save_steps": 1}, "while it saves",
              lambda: list(folder("saving").glob("checkpoint-*.tmp.*")))


def check_cache(runner: Runner) -> None:
    """Whoever makes the token cache and is stopped is named by those who wait for the cache."""
    for number in range(10):
        name = f"fresh{number}-"
        cache = runner.folder / name / ".cache"

        def holder(cache: pathlib.Path = cache) -> re.Match | None:
            texts = [path.read_text() for path in cache.glob("*.lock")]
            return next(filter(None, (re.match(r"rank (\d) \(process (\d+) on", text) for text in texts)), None)

        job = runner.start(3, name, {"output_dir": cache.parent / "run", "comm.timeout": TIMEOUT})
        wait_for(lambda job=job, holder=holder: job.poll() is not None or holder(), HUNG, "a rank to make the cache")
        found = holder()
        assert found, job.communicate(timeout=HUNG)[0]
        rank, pid = found.groups()
        stop(int(pid))
        if not list(cache.glob("*.tokens")):
            break
        runner.kill(job, name)  # It was quicker.
    message = ended_after_stop(runner, job, name, int(pid))
    assert f"rank {rank} (process {pid} on " in message and "to make the token cache" in message, message
    print(f"rank {rank} stopped while it makes the token cache: exit code 5, named")


if __name__ == "__main__":
    run_checks(check_cache, check_ranks)
