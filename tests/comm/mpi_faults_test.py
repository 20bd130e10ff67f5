"""Jobs in which a rank hangs, leaves, dies or disagrees: they must end by themselves, say why once, and name the rank."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import unittest

ARGS = argparse.Namespace()

LONG = 60  # Seconds: the deadline where nobody should wait for one.
SHORT = 4  # Where it is what finds the fault: so much may the sound ranks be apart on a busy machine.
SOON = 15  # A job takes 1 to 5 s to start and end here, beside the deadline.


def run_job(ranks: int, fault: str, timeout_seconds: float = LONG):
    """Runs the job to its end. Returns exit code, the lines of bitshard's own, all output, seconds."""
    started = time.monotonic()
    job = subprocess.run([ARGS.mpirun, "-n", str(ranks), ARGS.program, fault, str(timeout_seconds)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3 * LONG)
    seconds = time.monotonic() - started
    own = [line for line in job.stdout.splitlines() if line.startswith("bitshard: ")]
    return job.returncode, own, job.stdout, seconds


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


class MpiFaults(unittest.TestCase):
    def check(self, fault: str, code: int, message: str, ranks: int = 3, timeout_seconds: float = LONG) -> None:
        """Only what a deadline finds needs a short one; on a busy machine that can pass without a fault."""
        with self.subTest(fault=fault, ranks=ranks):
            returncode, own, output, seconds = run_job(ranks, fault, timeout_seconds)
            self.assertEqual(returncode, code, output)
            self.assertEqual(len(own), 1, f"one message, not one a rank:\n{output}")
            self.assertRegex(own[0], message)
            self.assertLess(seconds, (timeout_seconds if timeout_seconds < LONG else 0) + SOON, output)
            deadline = time.monotonic() + SOON
            for pid in re.findall(r"^pid (\d+)", output, re.MULTILINE):
                # mpirun doesn't wait for what it has killed: the kernel may still be freeing its memory.
                while alive(int(pid)) and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.assertFalse(alive(int(pid)), f"{fault}: rank process {pid} is left over")

    def test_good_job_ends_with_zero(self) -> None:
        for ranks in (1, 2, 3):
            returncode, own, output, _ = run_job(ranks, "none")
            self.assertEqual(returncode, 0, output)
            self.assertEqual(own, [], output)
            self.assertEqual(len(re.findall("^pid ", output, re.MULTILINE)), ranks, output)

    def test_rank_that_hangs_is_named(self) -> None:
        for ranks in (2, 3):
            self.check("stop", 5, rf'all-gather "parameters": rank {ranks - 1} on \S+ did not arrive within {SHORT}s',
                       ranks, SHORT)
        self.check("late", 5, rf'"parameters": rank 2 on \S+ did not arrive within {SHORT}s', 3, SHORT)

    def test_rank_that_hangs_in_the_middle_of_its_data_is_named(self) -> None:
        self.check("stop_in_data", 5, r'all-to-all "large": rank 1 on \S+ arrived but stopped', 2, SHORT)

    def test_rank_that_leaves_early_is_named(self) -> None:
        for ranks in (2, 3):
            self.check("leave", 5, f'"parameters": rank {ranks - 1} has left', ranks)

    def test_ranks_that_disagree_say_on_what(self) -> None:
        self.check("size", 1, r'"parameters": rank \d sends (16|8) bytes to rank \d, which expects (8|16)')
        self.check("name", 1, r'different ways: rank \d calls all-gather "(\w+)".*, rank \d calls all-gather "(?!\1)')
        self.check("operation", 1, r'different ways: rank \d calls (\S+) "parameters".*, rank \d calls (?!\1)')

    def test_failure_of_one_rank_ends_the_job_with_its_exit_code(self) -> None:
        self.check("fail", 6, "rank 2: the disk is full")
        _, _, output, _ = run_job(3, "fail")
        for rank in range(3):
            self.assertIn(f"rank {rank} got: rank 2: the disk is full", output)
        self.check("drop", 1, r'all-gather "parameters" was dropped before it was complete')

    def test_dead_rank_ends_the_job(self) -> None:
        returncode, _, output, seconds = run_job(3, "kill")
        self.assertEqual(returncode, 137, output)
        self.assertRegex(output, r"rank 2 .*(Killed|signal 9)")
        self.assertLess(seconds, SOON)
        returncode, _, output, seconds = run_job(3, "exit")
        self.assertNotEqual(returncode, 0, output)
        self.assertLess(seconds, SOON)

    def test_pause_of_the_whole_job_is_nobodys_fault(self) -> None:
        job = subprocess.Popen([ARGS.mpirun, "-n", "2", ARGS.program, "pause_all", str(SHORT)], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
        assert job.stdout is not None
        pids = [int(job.stdout.readline().split()[1]) for _ in range(2)]
        time.sleep(0.5)  # Rank 0 begins to wait for rank 1, which goes on only after the pause.
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(SHORT + 1.5)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        output, _ = job.communicate(timeout=2 * LONG)
        self.assertEqual(job.returncode, 0, output)

    def test_other_launchers_are_refused(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_"))}
        job = subprocess.run([ARGS.program, "none"], env={**env, "RANK": "1", "WORLD_SIZE": "2"}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * LONG)
        self.assertEqual(job.returncode, 2, job.stdout)
        self.assertIn("WORLD_SIZE=2", job.stdout)
        # Another MPI's mpirun: this program's MPI starts as a single process.
        job = subprocess.run([ARGS.program, "none"], env={**env, "PMI_SIZE": "2", "PMI_RANK": "0"}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * LONG)
        self.assertEqual(job.returncode, 2, job.stdout)
        self.assertIn("has started 2 processes, but MPI connects 1", job.stdout)

    def test_no_launcher_is_one_rank(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
        job = subprocess.run([ARGS.program, "none"], env=env, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, timeout=2 * LONG)
        self.assertEqual(job.returncode, 0, job.stdout)
        self.assertIn("rank 0 of 1", job.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpirun", required=True)
    parser.add_argument("--program", required=True)
    ARGS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
