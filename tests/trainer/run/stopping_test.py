"""Ends that a run announces: asked to stop outside of its steps (143), out of memory (4), numbers that are not finite
(7, or left out)."""
import json
import pathlib
import shutil
import signal
import subprocess

from tiny_run import HUNG, Runner, one_error, rank_pids, run_checks, same_adapter, tell, wait_for

LONG = 200000  # New tokens: minutes of answers.


def catches(pid: int, number: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def stopped_early(runner: Runner, verb: str, rank: int, settings: dict, *more: str) -> str:
    """Asks one rank of two (of one, for quantize) to stop as soon as it listens; where it then looks first is where
    it must stop. Returns its message, or nothing if the job was quicker than this process."""
    ranks = 1 if verb == "quantize" else 2
    job = runner.start(ranks, f"early-{verb}", settings, *more, verb=verb)

    def listening() -> list[int]:
        pids = rank_pids(runner.binary, f"early-{verb}")
        return pids if len(pids) == ranks and catches(pids[rank], signal.SIGUSR1) else []

    wait_for(lambda: job.poll() is not None or listening(), HUNG, "the ranks to listen")
    for pid in listening()[rank:rank + 1]:
        tell(pid, signal.SIGUSR1)
    text, _ = job.communicate(timeout=HUNG)
    if job.returncode == 0:
        return ""
    assert job.returncode == 143, f"{verb}: exit code {job.returncode}\n{text}"
    return one_error(text, "asked to stop")


def check_stop(runner: Runner) -> None:
    """The caches are there, so that nothing but the evaluation looks whether it should stop."""
    settings = {"generate.heldout_prompts": 0, **runner.long_evaluation(4000)}
    for verb, advice in (("evaluate", "nothing was written"), ("train", "nothing was trained yet")):
        message = stopped_early(runner, verb, 1, settings)
        assert f"while evaluating; {advice}: start it again" in message, message
    out = runner.folder / "early-quantize"
    for _ in range(20):
        message = stopped_early(runner, "quantize", 0, {}, "--export", "hf", "--output", str(out))
        if message:
            break
        shutil.rmtree(out)
    assert "while writing weights" in message and not list(out.glob("*")), message
    print("asked to stop while evaluating and exporting: exit code 143")


def check_stop_in_answers(runner: Runner) -> None:
    model = runner.folder / "long"
    shutil.copytree(runner.folder / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10 * LONG}))
    for ranks in (1, 2):  # Of two, the second has no prompt and waits for the first.
        job = runner.start(ranks, "answers", {"base_model": model, "generate.max_new_tokens": LONG})
        lines = iter(job.stdout.readline, "")
        printed = "".join(line for line in [next(lines)] if line)
        while "held-out loss of the base" not in printed:
            printed += next(lines)
        job.send_signal(signal.SIGTERM)
        text, _ = job.communicate(timeout=HUNG)
        assert job.returncode == 143, f"exit code {job.returncode}\n{printed}{text}"
        one_error(text, "asked to stop while answering prompts; nothing was trained yet")
    print("asked to stop while answering: exit code 143")


def check_memory(runner: Runner) -> None:
    """Keys and values for a million tokens of eight answers, 2 GB each, do not fit the address space."""
    prompts = [part for i in range(8) for part in ("--prompt", "foo")]
    for tokens, code in ((8, 0), (1_000_000, 4)):
        command = runner.command(1, "memory", {"base_model": runner.folder / "long", "generate.max_new_tokens": tokens},
                                 *prompts, verb="generate")
        done = subprocess.run(["sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", *command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=HUNG)
        assert done.returncode == code, f"exit code {done.returncode}, want {code}\n{done.stdout}"
    one_error(done.stdout, "not enough memory", "bitshard plan", "generate.max_new_tokens")
    print("out of memory: exit code 4, one message")


DIVERGES = {"learning_rate": 100, "weight_decay": 100, "lr_scheduler": "constant", "warmup_steps": 0,
            "generate.heldout_prompts": 0}


def check_not_finite(runner: Runner) -> None:
    message = one_error(runner.run(3, "stop", DIVERGES, expect=7), "not finite", "nonfinite: skip")
    step = int(message.split("step ")[1].split(":")[0])
    assert [line["step"] for line in runner.lines("stop")] == list(range(1, step))
    text = runner.run(2, "skip", DIVERGES | {"nonfinite": "skip"})
    skipped = [line["step"] for line in runner.lines("skip") if line.get("skipped")]
    assert skipped == list(range(step, 13)) and text.count("skipped, nothing was changed") == len(skipped), text
    runner.run(1, "before", DIVERGES | {"nonfinite": "skip", "max_steps": step - 1})
    same_adapter("skipped steps change nothing", runner.adapter("before"), runner.adapter("skip"))
    print(f"not finite from step {step} on: exit code 7, one message of three ranks; or skipped")


if __name__ == "__main__":
    run_checks(check_not_finite, check_stop, check_stop_in_answers, check_memory)
