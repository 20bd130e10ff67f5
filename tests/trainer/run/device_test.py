"""`device: cuda` trains as the CPU does: nearly the same losses, the same bits at any world size, paged, and resumed.

With --cudahost the program runs on the stand-in for CUDA, NCCL and cuBLAS (docs/cudahost.md); without, on GPUs.
"""
import argparse
import ctypes
import json
import os
import pathlib
import sys
import tempfile

from tiny_run import Runner, exact_lines, make_material, one_error, same_adapter

SETTINGS = {"device": "cuda", "max_steps": 4, "save_steps": 2, "global_batch_size": 4, "eval_max_samples": 3}
# The losses of the first step are of the same adapter: rounding of sums of some hundred terms in another order, as in
# decoder_oracle_test.py. Later an element whose gradient is smaller than the rounding errors in it may have been
# stepped the other way, by two learning rates at most; the loss does not depend on it more than its gradient says.
FIRST_LOSS, LATER_LOSS = 2e-5, 1e-4


def check_against_cpu(runner: Runner, device: list[dict]) -> None:
    runner.run(1, "cpu", {**SETTINGS, "device": "cpu"})
    cpu = runner.lines("cpu")
    for ours, theirs in zip(device, cpu, strict=True):
        bound = FIRST_LOSS if ours["step"] == 1 else LATER_LOSS
        difference = abs(ours["loss"] / theirs["loss"] - 1)
        print(f"step {ours['step']}: loss {ours['loss']:.6f}, on the CPU {theirs['loss']:.6f}: {difference:.1e}")
        assert difference < bound, (ours, theirs)
        for key in ("tokens", "trained_tokens", "learning_rate", "epoch"):
            assert ours[key] == theirs[key], (key, ours, theirs)
    summaries = [json.loads((runner.output(name) / "summary.json").read_text()) for name in ("one", "cpu")]
    before = [summary["heldout_loss_before"] for summary in summaries]
    after = [summary["heldout_loss_after"] for summary in summaries]
    assert abs(before[0] / before[1] - 1) < FIRST_LOSS, before
    assert abs(after[0] / after[1] - 1) < LATER_LOSS, after
    assert after[0] < before[0] - 0.02, f"nothing is learnt: {before[0]} to {after[0]}"
    answers = [json.loads((runner.output(name) / "answers.json").read_text()) for name in ("one", "cpu")]
    assert [a["before"] for a in answers[0]] == [a["before"] for a in answers[1]], answers


def check_same_bits(runner: Runner, ranks: list[int]) -> None:
    paged = {"optimizer": "paged_adamw_8bit", "paging.budget": "16MiB"}
    runs = [(f"{n} ranks", n, {}) for n in ranks[1:]]
    runs += [("managed", ranks[-1], paged), ("pinned", 1, {**paged, "paging.tier": "pinned"})]
    runs += [("resumed", ranks[-1], {"resume_from_checkpoint": runner.output("one") / "checkpoint-2"})]
    runs += [("copies that stage nothing", 1, {})]
    lines = exact_lines(runner.lines("one"))
    for name, n, settings in runs:
        text = runner.run(n, name, {**SETTINGS, "eval_on_start": "false", **settings},
                          env={"BITSHARD_CUDAHOST_PAGEABLE": str(int(name.startswith("copies")))})
        same_adapter(f"{name} against one rank", runner.adapter("one"), runner.adapter(name))
        own = exact_lines(runner.lines(name))
        assert own == lines[-len(own):], f"{name}: metrics differ from one rank's"
        assert len(own) == (2 if name == "resumed" else 4), text
        summary = json.loads((runner.output(name) / "summary.json").read_text())
        assert summary["bytes_sent_per_step"] == summary["planned_bytes_sent_per_step"], (name, summary)
    print("same bits: " + ", ".join(name for name, _, _ in runs))


def check_fast(runner: Runner, ranks: int) -> None:
    """NCCL adds: nearly the same losses, and what the plan says is sent. With one rank nothing is added up."""
    runner.run(ranks, "fast", {**SETTINGS, "eval_on_start": "false", "comm.reduction": "fast"})
    lines = runner.lines("fast")
    for ours, theirs in zip(lines, runner.lines("one"), strict=True):
        assert abs(ours["loss"] / theirs["loss"] - 1) < (1e-15 if ours["step"] == 1 else LATER_LOSS), (ours, theirs)
    if ranks == 1:
        same_adapter("fast on one rank", runner.adapter("one"), runner.adapter("fast"))
    summary = json.loads((runner.output("fast") / "summary.json").read_text())
    assert summary["bytes_sent_per_step"] == summary["planned_bytes_sent_per_step"], summary
    print("fast: ok")


def check_notices(runner: Runner, told: str) -> None:
    """NCCL's settings decide over speed and hangs, and come from the environment: a run says them, or nothing."""
    line = [line for line in told.splitlines() if "NCCL is told" in line]
    assert len(line) == 1 and "NCCL_DEBUG=WARN" in line[0] and "NCCL_IB_DISABLE=1" in line[0], told
    text = runner.run(1, "quiet", {**SETTINGS, "max_steps": 1, "eval_on_start": "false"})
    assert ("NCCL is told" in text) == any(key.startswith("NCCL_") for key in os.environ), text


def check_plan(runner: Runner) -> None:
    text = runner.run(1, "plan", SETTINGS, verb="plan")
    assert "memory of its GPU" in text and "cuBLAS's workspace" in text, text
    text = runner.run(1, "plan", {"device": "cpu"}, verb="plan")
    assert "GPU" not in text, text


def check_faults(runner: Runner) -> None:
    """What the stand-in can refuse on demand."""
    text = runner.run(2, "too_few", SETTINGS, expect=2, env={"BITSHARD_CUDAHOST_DEVICES": "1"})
    one_error(text, "device: cuda", "shows its ranks 1 GPU", "set device: cpu")
    assert not runner.output("too_few").exists(), "output_dir was made before the GPUs were looked for"
    text = runner.run(1, "none", {**SETTINGS, "device": "auto", "max_steps": 1},
                      env={"BITSHARD_CUDAHOST_DEVICES": "0"})
    assert "a GPU for each rank" not in text, text
    text = runner.run(1, "old", {**SETTINGS, "compute_type": "bf16"}, expect=2,
                      env={"BITSHARD_CUDAHOST_COMPUTE_CAPABILITY": "75"})
    one_error(text, "compute_type: bf16", "does not multiply it")
    text = runner.run(2, "small", SETTINGS, expect=4,
                      env={"BITSHARD_CUDAHOST_DEVICES": "2", "BITSHARD_CUDAHOST_DEVICE_BYTES": "30000000"})
    one_error(text, "bytes")
    text = runner.run(1, "failing", SETTINGS, expect=1,
                      env={"BITSHARD_CUDAHOST_FAIL": "cublasGemmEx_64:200:cudaErrorUnknown"})
    one_error(text, "cublasGemmEx_64")
    print("faults: ok")


def devices_here() -> int:
    """As the program counts them: CUDA_VISIBLE_DEVICES hides some from it, not from nvidia-smi."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    found = cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--cudahost", action="store_true")
    args = parser.parse_args()
    devices = 2 if args.cudahost else devices_here()
    if devices == 0:
        print("skipped: no GPU here")
        sys.exit(77)
    ranks = [1, 2][:devices]
    if args.cudahost:
        os.environ.update(BITSHARD_CUDAHOST_DEVICES="2", BITSHARD_CUDAHOST_LEAKS="fail")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_material(folder)
        runner = Runner(args.binary, args.source, folder)
        text = runner.run(1, "one", SETTINGS, env={"NCCL_DEBUG": "WARN", "NCCL_IB_DISABLE": "1"})
        assert "a GPU for each rank" in text, text
        check_notices(runner, text)
        check_against_cpu(runner, runner.lines("one"))
        check_same_bits(runner, ranks)
        check_fast(runner, ranks[-1])
        check_plan(runner)
        runner.run(ranks[-1], "bf16", {**SETTINGS, "compute_type": "bf16", "max_steps": 1})
        if args.cudahost:
            check_faults(runner)


if __name__ == "__main__":
    main()
