"""What users and machines do wrong: the exit code, one clear message, no hang, nothing half-written."""
import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from tiny_run import Runner, make_material, rank_pids, wait_for


def one_error(text: str, *parts: str) -> None:
    errors = [line for line in text.splitlines() if "bitshard: error:" in line]
    assert len(errors) == 1, f"want one error message, got {len(errors)}:\n{text}"
    for part in parts:
        assert part in text, f"the message lacks {part!r}:\n{text}"


def check_config(runner: Runner) -> None:
    one_error(runner.run(2, "bad", {"lora_rnk": 4}, expect=2), "lora_rnk", "lora_r")
    one_error(runner.run(2, "bad", {"lora_r": "8x"}, expect=2), "lora_r", "8x")
    one_error(runner.run(2, "bad", {"learning_rate": -1}, expect=2), "learning_rate")
    one_error(runner.run(2, "bad", {"optimizer": "adamw_8bt"}, expect=2), "adamw_8bit")
    one_error(runner.run(2, "bad", {"lora_target_modules": "[q_prj]"}, expect=2), "q_prj", "q_proj")
    one_error(runner.run(2, "bad", {"base_model": "no/such/model"}, expect=3), "no/such/model")
    one_error(runner.run(2, "bad", {"comm.timeout": 5, "global_batch_size": 1}, expect=2), "global_batch_size")
    print("configuration errors: one message, exit code 2")


def check_ranks_differ(runner: Runner) -> None:
    """Rank 1 is started with another learning rate."""
    wrapper = runner.folder / "wrapper.sh"
    wrapper.write_text('#!/bin/sh\nif [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then set -- "$@" --set learning_rate=3e-3; fi\n'
                       f'exec {runner.binary} "$@"\n')
    wrapper.chmod(0o755)
    command = [str(wrapper) if part == runner.binary else part for part in runner.command(2, "differ")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    one_error(done.stderr, "rank 1", "learning_rate")
    print("ranks with different configurations: exit code 2, rank and key named")


def check_data(runner: Runner) -> None:
    broken = runner.folder / "broken.jsonl"
    broken.write_text((runner.folder / "train.jsonl").read_text()[:-30])
    one_error(runner.run(2, "bad", {"datasets": f"[{{path: {broken}}}]"}, expect=3), "broken.jsonl")
    model = runner.folder / "cut"
    shutil.copytree(runner.folder / "model", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    one_error(runner.run(2, "bad", {"base_model": model}, expect=3), "model.safetensors")
    print("damaged data and model: exit code 3")


def check_checkpoints(runner: Runner) -> None:
    runner.run(2, "steps", {"max_steps": 9})
    one_error(runner.run(2, "steps", {"max_steps": 9, "lora_alpha": 4}, "--resume", expect=2), "lora_alpha")
    newest = runner.output("steps") / "checkpoint-9"
    shard = sorted(p for p in newest.iterdir() if "shard" in p.name or p.suffix not in (".json", ""))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    text = runner.run(2, "steps", {"max_steps": 9}, "--resume")
    assert "skipped" in text and "checkpoint-9" in text and "checkpoint-6: 6 of 9" in text, text
    assert [line["step"] for line in runner.lines("steps")] == list(range(1, 10))
    one_error(runner.run(2, "empty", {}, "--resume", expect=3), "no checkpoint")
    print("a damaged checkpoint is skipped and told; another configuration is refused")


def check_two_jobs(runner: Runner) -> None:
    job = runner.start(1, "shared", {"max_steps": 400})
    wait_for(lambda: (runner.output("shared") / "metrics.jsonl").exists(), 60, "the first job")
    one_error(runner.run(1, "shared", expect=2), "process")
    job.kill()
    for pid in rank_pids(runner.binary, "shared"):
        os.kill(pid, signal.SIGKILL)
    job.wait()
    print("a second job in the same output_dir: exit code 2")


def check_hang(runner: Runner) -> None:
    """A stopped rank is found by our own deadline and named."""
    job = runner.start(2, "hang", {"max_steps": 400, "comm.timeout": 3})
    wait_for(lambda: (runner.output("hang") / "metrics.jsonl").exists(), 60, "the first step")
    pids = rank_pids(runner.binary, "hang")
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    text, _ = job.communicate(timeout=40)
    assert time.monotonic() - began < 13, "more than 10 s after the deadline"
    assert job.returncode == 5, f"exit code {job.returncode}\n{text}"
    one_error(text, "rank 1")
    wait_for(lambda: not rank_pids(runner.binary, "hang"), 10, "all ranks to be gone")
    print("a rank that hangs: exit code 5, named")


def check_disk_full(runner: Runner) -> None:
    """A checkpoint that does not fit: training goes on, the last error is exit code 6."""
    small = runner.folder / "small"
    small.mkdir()
    script = (f"mount -t tmpfs -o size=300k none {small} && exec " +
              " ".join(f"'{part}'" for part in runner.command(2, "x", {"output_dir": small, "save_total_limit": 0})))
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, timeout=120)
    text = done.stdout + done.stderr
    if "unshare:" in text or "mount:" in text:
        print("SKIPPED disk full: no mount namespaces here")
        return
    assert done.returncode == 6, f"exit code {done.returncode}\n{text}"
    assert "training goes on" in text and "No space left" in text, text
    print("disk full: warned, trained on, exit code 6")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_material(folder)
        runner = Runner(args.binary, args.source, folder)
        for check in (check_config, check_ranks_differ, check_data, check_checkpoints, check_two_jobs, check_hang,
                      check_disk_full):
            check(runner)


if __name__ == "__main__":
    main()
