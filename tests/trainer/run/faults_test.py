"""What users and machines do wrong: the exit code, one clear message, no hang, nothing half-written."""
import shutil
import subprocess

from tiny_run import HUNG, Runner, one_error, rank_pids, run_checks, wait_for


def refused(runner: Runner, settings: dict, code: int, *parts: str) -> None:
    """One message and the exit code, and no output_dir afterwards."""
    one_error(runner.run(2, "bad", settings, expect=code), *parts)
    assert not runner.output("bad").exists(), f"{settings}: left {list(runner.output('bad').iterdir())}"


def check_used_folder(runner: Runner) -> None:
    """A refused run leaves a folder that was there as it was."""
    used = runner.output("used")
    used.mkdir(parents=True)
    (used / "config.yaml").write_text("mine")
    one_error(runner.run(2, "used", {"lora_target_modules": "[q_prj]"}, expect=2), "q_prj")
    assert {path.name: path.read_text() for path in used.iterdir()} == {"config.yaml": "mine"}
    print("a refused run changes nothing in output_dir")


def check_config(runner: Runner) -> None:
    refused(runner, {"lora_rnk": 4}, 2, "lora_rnk", "lora_r")
    for settings, parts in (({"lora_r": "8x"}, ("lora_r", "8x")), ({"learning_rate": -1}, ("learning_rate",)),
                            ({"optimizer": "adamw_8bt"}, ("adamw_8bit",)),
                            ({"comm.timeout": 5, "global_batch_size": 1}, ("global_batch_size",))):
        one_error(runner.run(2, "bad", settings, expect=2), *parts)
    refused(runner, {"lora_target_modules": "[q_prj]"}, 2, "q_prj", "q_proj")
    refused(runner, {"base_model": "no/such/model"}, 3, "no/such/model")
    assert not runner.output("bad").exists()
    print("configuration errors: one message, exit code 2, nothing left")


def check_prompts(runner: Runner) -> None:
    """What can't be answered is refused before the baseline is measured, by its key."""
    long = "what " * 100
    refused(runner, {"generate.prompts": f"[short, {long.strip()}]"}, 2, "generate.prompts", "want at most")
    refused(runner, {"generate.max_new_tokens": 1000}, 2, "generate.max_new_tokens: got 1000, want at most 2",
            "context is 256")
    one_error(runner.run(1, "bad", {}, "--prompt", long * 3, verb="generate", expect=2), "--prompt", "context is 256")
    text = runner.run(1, "many", {"max_steps": 1, "generate.heldout_prompts": 1000, "generate.max_new_tokens": 1,
                                  "generate.prompts": "[" + ", ".join(["foo"] * 140) + "]"})
    assert text.count("\nQ: foo\n") == 140 and text.count("\nQ: What is") == 8, text
    print("prompts: too long is refused by key; more than a decoder takes at a time are answered")


def check_ranks_differ(runner: Runner) -> None:
    """Rank 1 of three is started with another learning rate, or with another command; and all with a setting of the
    environment that can't be met, which none of them knows of the others."""
    for arguments, parts in (('"$@" --set learning_rate=3e-3', ("rank 1: ", "learning_rate")),
                             ('plan --config "$3"', ("rank 1: ", "`bitshard plan`, rank 0 with `bitshard train`")),
                             ("--help", ("rank 1: ", "`bitshard --help`, rank 0 with `bitshard train`"))):
        wrapper = runner.folder / "wrapper.sh"
        wrapper.write_text(f'#!/bin/sh\nif [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then set -- {arguments}; fi\n'
                           f'exec {runner.binary} "$@"\n')
        wrapper.chmod(0o755)
        command = [str(wrapper) if part == runner.binary else part for part in runner.command(3, "differ")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG)
        assert done.returncode == 2, done.stdout + done.stderr
        one_error(done.stderr, *parts)
    one_error(runner.run(3, "differ", expect=2, env={"BITSHARD_SIMD": "MMX"}), "BITSHARD_SIMD", "MMX")
    assert not runner.output("differ").exists()
    print("ranks with different configurations or commands: exit code 2, rank and key named")


def check_data(runner: Runner) -> None:
    broken = runner.folder / "broken.jsonl"
    broken.write_text((runner.folder / "train.jsonl").read_text()[:-30])
    refused(runner, {"datasets": f"[{{path: {broken}}}]"}, 3, "broken.jsonl")
    model = runner.folder / "cut"
    shutil.copytree(runner.folder / "model", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(runner, {"base_model": model}, 3, "model.safetensors")
    print("damaged data and model: exit code 3, nothing left")


def check_checkpoints(runner: Runner) -> None:
    runner.run(2, "steps", {"max_steps": 9})
    before = (runner.output("steps") / "config.yaml").read_bytes()
    one_error(runner.run(2, "steps", {"max_steps": 9, "lora_alpha": 4}, "--resume", expect=2), "lora_alpha")
    assert (runner.output("steps") / "config.yaml").read_bytes() == before, "the refused run changed config.yaml"
    newest = runner.output("steps") / "checkpoint-9"
    shard = sorted(p for p in newest.iterdir() if "shard" in p.name or p.suffix not in (".json", ""))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    text = runner.run(2, "steps", {"max_steps": 9}, "--resume")
    assert "skipped" in text and "checkpoint-9" in text and "checkpoint-6: 6 of 9" in text, text
    assert [line["step"] for line in runner.lines("steps")] == list(range(1, 10))
    for left in runner.output("steps").glob("checkpoint-*/manifest.json"):
        left.write_bytes(left.read_bytes()[:-1])
    message = one_error(runner.run(3, "steps", {"max_steps": 9}, "--resume", expect=3), "none of its 3 checkpoints")
    assert message.count("manifest.json") == 3, message
    one_error(runner.run(2, "steps", {"resume_from_checkpoint": runner.output("steps")}, expect=3),
              "steps: no checkpoint, it has no manifest.json", "as in runs/x/checkpoint-40")
    one_error(runner.run(2, "empty", {}, "--resume", expect=3), "no checkpoint")
    assert not runner.output("empty").exists()
    print("a damaged checkpoint is skipped and told; another configuration is refused")


def check_what_does_not_fit(runner: Runner) -> None:
    """Data that changed since the checkpoint, and a model of another family than was said."""
    data = runner.folder / "changing.jsonl"
    lines = (runner.folder / "train.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    settings = {"max_steps": 3, "datasets": f"[{{path: {data}, type: chat_template}}]"}
    runner.run(2, "changed", settings)
    data.write_text("".join(lines[1:]))
    one_error(runner.run(2, "changed", settings, "--resume", expect=3), "checkpoint-3", "was trained on other data")
    refused(runner, {"model_type": "qwen2"}, 2, "model_type: got qwen2, but", "is llama")
    print("other data than before, another model than said: refused, with what differs")


def check_two_jobs(runner: Runner) -> None:
    job = runner.start(1, "shared", {"max_steps": 1000000})
    wait_for(lambda: (runner.output("shared") / "metrics.jsonl").exists(), HUNG, "the first job")
    holder = rank_pids(runner.binary, "shared")[0]
    one_error(runner.run(1, "shared", expect=2), f"shared is in use by process {holder} on ")
    runner.kill(job, "shared")
    print("a second job in the same output_dir: exit code 2")


def on_small_disk(runner: Runner, size: str, settings: dict) -> str:
    """Two ranks with output_dir disk/run, `disk` a file system of that size. Returns what they printed; nothing where
    file systems can't be mounted."""
    disk = runner.folder / "small"
    disk.mkdir(exist_ok=True)
    script = (f"mount -t tmpfs -o size={size} none {disk} && exec " +
              " ".join(f"'{part}'" for part in runner.command(2, "x", {"output_dir": disk / "run", **settings})))
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, timeout=HUNG)
    text = done.stdout + done.stderr
    if "unshare:" in text or "mount:" in text:
        print("SKIPPED disk full: no mount namespaces here")
        return ""
    assert done.returncode == 6, f"exit code {done.returncode}\n{text}"
    return text


def check_disk_full(runner: Runner) -> None:
    """A checkpoint that does not fit: training goes on, the last error is exit code 6. The token cache neither."""
    text = on_small_disk(runner, "300k", {"save_total_limit": 0})
    if not text:
        return
    assert "training goes on" in text and "No space left" in text, text
    for size in ("8k", "24k"):
        one_error(on_small_disk(runner, size, {}), ".tokens", "No space left on device; free space or write elsewhere")
    print("disk full: warned, trained on, exit code 6")


if __name__ == "__main__":
    run_checks(check_config, check_used_folder, check_prompts, check_ranks_differ, check_data, check_checkpoints,
               check_what_does_not_fit, check_two_jobs, check_disk_full)
