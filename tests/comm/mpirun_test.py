"""launch/mpirun.sh: the command it makes, and what becomes of signals."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ARGS = argparse.Namespace()

# One of two ranks: says who it is, and takes SIGUSR1 as "save and stop". It leaves when both have printed: mpirun ends
# the other ranks of a job as soon as one has failed. No commands but sleep: mpirun signals the whole process group.
RANK = """
save() {
  echo rank $OMPI_COMM_WORLD_RANK saves
  : > "$MARKS/$OMPI_COMM_WORLD_RANK"
  until [[ -e $MARKS/0 && -e $MARKS/1 ]]; do sleep 0.05; done
  exit 143
}
trap save USR1
echo rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE threads $OMP_NUM_THREADS
for ((i = 0; i < 1200; i++)); do sleep 0.1 & wait $!; done
"""
STUBBORN_RANK = RANK.replace("trap save USR1", "trap 'echo rank $OMPI_COMM_WORLD_RANK goes on' USR1")

MOST_SECONDS = 60  # For what takes a second or two, on a machine with time for it.


def dry_run(*arguments: str, **env: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.run([ARGS.mpirun, *arguments], env={**environment, **env}, text=True, check=True,
                          stdout=subprocess.PIPE).stdout


def alive(pid: int) -> bool:
    """False also for one that has ended but whose parent, in a container maybe nobody, does not ask for its status."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Mpirun(unittest.TestCase):
    def start(self, ranks: int, script: str) -> tuple[subprocess.Popen, list[str]]:
        """A job whose ranks have all printed their first line, and these lines."""
        marks = tempfile.TemporaryDirectory()
        self.addCleanup(marks.cleanup)
        job = subprocess.Popen([ARGS.mpirun, "-n", str(ranks), "bash", "-c", script], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={**os.environ, "MARKS": marks.name})
        assert job.stdout is not None
        lines = [job.stdout.readline() for _ in range(ranks)]
        for line in lines:
            self.assertRegex(line, r"^rank \d of")
        return job, lines

    def test_dry_run_prints_the_command(self) -> None:
        cores = len(os.sched_getaffinity(0))
        out = dry_run("-n", "2", "--dry-run", "program", "--set", "a b")
        self.assertIn(f"OMP_NUM_THREADS={max(len(os.sched_getaffinity(0)) // 2, 1)} ", out)
        self.assertIn("mpirun -n 2 --bind-to none ", out)
        self.assertTrue(out.rstrip().endswith(r"program --set a\ b"), out)
        for threads in ("1", "1000"):  # What a rank has says nothing about the machine.
            out = dry_run("-n", "2", "--dry-run", "program", OMP_NUM_THREADS=threads)
            self.assertEqual("--oversubscribe" in out, cores < 2, out)
            out = dry_run("-n", str(cores + 1), "--dry-run", "program", OMP_NUM_THREADS=threads)
            self.assertIn("--oversubscribe", out)
        self.assertEqual("OMPI_ALLOW_RUN_AS_ROOT=1" in out, os.geteuid() == 0)

    def test_threads_are_the_users_where_given(self) -> None:
        self.assertIn("OMP_NUM_THREADS=5 ", dry_run("-n", "2", "--threads", "5", "--dry-run", "program"))
        self.assertIn("OMP_NUM_THREADS=3 ", dry_run("-n", "2", "--dry-run", "program", OMP_NUM_THREADS="3"))

    def test_options_before_two_dashes_are_mpiruns(self) -> None:
        out = dry_run("-n", "2", "--threads", "4", "--dry-run", "--hostfile", "hosts", "--tag-output", "--", "program", "--")
        self.assertIn("-x OMP_NUM_THREADS --hostfile hosts --tag-output program --", out)
        self.assertNotIn("--oversubscribe", out)

    def test_hosts_may_come_from_the_job(self) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".hosts") as two, tempfile.NamedTemporaryFile("w") as one:
            two.write("a 4\nb 4\na 4\n")
            one.write("a 4\na 4\n")
            two.flush()
            one.flush()
            for env, hosts in (({"SLURM_JOB_NUM_NODES": "2"}, True), ({"SLURM_JOB_NUM_NODES": "1"}, False),
                               ({"PBS_NODEFILE": two.name}, True), ({"PBS_NODEFILE": one.name}, False),
                               ({"LSB_DJOB_HOSTFILE": two.name}, True), ({"PE_HOSTFILE": two.name}, True),
                               ({"PE_HOSTFILE": "/nowhere"}, False),
                               ({"OMPI_MCA_orte_default_hostfile": two.name}, True)):
                out = dry_run("-n", "1", "--threads", "4", "--dry-run", "program", **env)
                self.assertEqual("-x OMP_NUM_THREADS" in out, hosts, (env, out))
                self.assertEqual("--use-hwthread-cpus" in out, not hosts, (env, out))

    def test_hardware_threads_take_a_rank_each(self) -> None:
        """As on a machine of one core with two threads, where mpirun by itself takes one rank."""
        threads = len(os.sched_getaffinity(0))
        job = subprocess.run([ARGS.mpirun, "-n", str(threads), "true"], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, timeout=MOST_SECONDS,
                             env={**os.environ, "HWLOC_SYNTHETIC": f"package:1 core:1 pu:{threads}"})
        self.assertEqual(job.returncode, 0, job.stdout)

    def test_wrong_arguments_exit_with_2(self) -> None:
        for arguments, text in ((["program"], "-n N is missing"), (["-n", "0", "program"], "got '0'"),
                                (["-n", "two", "program"], "got 'two'"), (["-n", "2"], "program to run is missing"),
                                (["-n", "2", "--threads", "x", "program"], "--threads"),
                                (["-n", "2", "--tag-output", "program"], "put '--'"),
                                (["-n", "2", "--host", "a,b", "--", "program"], "give --threads")):
            job = subprocess.run([ARGS.mpirun, *arguments], text=True, stderr=subprocess.PIPE, timeout=MOST_SECONDS,
                                 env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"})
            self.assertEqual(job.returncode, 2, arguments)
            self.assertIn(text, job.stderr)

    def test_input_goes_to_rank_0(self) -> None:
        # Both ranks exit with 0: mpirun ends the other ranks of a job in which one failed, and drops what they print.
        job = subprocess.run([ARGS.mpirun, "-n", "2", "bash", "-c", 'echo "rank $OMPI_COMM_WORLD_RANK got <$(cat)>"'],
                             input="some text", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             timeout=MOST_SECONDS)
        self.assertEqual(job.returncode, 0, job.stdout)
        self.assertIn("rank 0 got <some text>", job.stdout)
        self.assertIn("rank 1 got <>", job.stdout)

    def test_exit_status_is_the_ranks(self) -> None:
        job = subprocess.run([ARGS.mpirun, "-n", "2", "bash", "-c", "exit $((OMPI_COMM_WORLD_RANK * 7))"],
                             text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=MOST_SECONDS)
        self.assertEqual(job.returncode, 7, job.stdout)

    def test_first_signal_asks_ranks_to_save(self) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            job, _ = self.start(2, RANK)
            job.send_signal(signal_number)
            output, _ = job.communicate(timeout=MOST_SECONDS)
            self.assertEqual(job.returncode, 143, output)
            for rank in range(2):
                self.assertIn(f"rank {rank} saves", output)

    def test_signals_at_once_are_one(self) -> None:
        """`timeout` sends TERM to the script, and again to its process group."""
        job, _ = self.start(2, RANK)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # Of one kind they might be one to the kernel too.
            job.send_signal(number)
        output, _ = job.communicate(timeout=MOST_SECONDS)
        self.assertEqual(job.returncode, 143, output)
        for rank in range(2):
            self.assertIn(f"rank {rank} saves", output)
        self.assertEqual(output.count("asking the ranks to save"), 1, output)

    def test_first_signal_ends_ranks_that_do_not_take_it_yet(self) -> None:
        job, _ = self.start(2, RANK.replace("trap save USR1", ""))
        job.send_signal(signal.SIGTERM)
        output, _ = job.communicate(timeout=MOST_SECONDS)
        self.assertEqual(job.returncode, 143, output)
        self.assertIn("mpirun.sh: the signal came before the ranks could save", output)

    def test_second_signal_ends_the_job(self) -> None:
        job, _ = self.start(2, STUBBORN_RANK)
        assert job.stdout is not None
        job.send_signal(signal.SIGTERM)
        # Two signals at once would be one; and both ranks have heard of the first.
        said = ""
        while not all(text in said for text in ("a second signal stops them", "rank 0 goes on", "rank 1 goes on")):
            line = job.stdout.readline()
            self.assertTrue(line, f"the job has ended:\n{said}")
            said += line
        self.assertIsNone(job.poll())
        time.sleep(0.6)  # Sooner, it would be the first one still.
        started = time.monotonic()
        job.send_signal(signal.SIGTERM)
        output, _ = job.communicate(timeout=MOST_SECONDS)
        self.assertNotEqual(job.returncode, 0, output)
        self.assertLess(time.monotonic() - started, 20)

    def test_ranks_end_when_the_script_is_killed(self) -> None:
        job, lines = self.start(2, "echo rank $OMPI_COMM_WORLD_RANK of $$ $PPID; exec sleep 300")
        pids = [int(pid) for line in lines for pid in line.split()[3:]]
        job.kill()
        deadline = time.monotonic() + 20
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual([pid for pid in pids if alive(pid)], [])
        job.communicate()

    def test_shellcheck_finds_nothing(self) -> None:
        if shutil.which("shellcheck") is None:
            self.skipTest("shellcheck is not installed")
        subprocess.run(["shellcheck", ARGS.mpirun], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mpirun", required=True)
    ARGS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest], verbosity=2)
