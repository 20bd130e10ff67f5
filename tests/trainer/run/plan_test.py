"""What the plan says is what the run takes: memory of the largest rank within 5%, bytes sent by a step exactly."""
import json
import os
import pathlib
import re

from tiny_run import Runner, run_checks

REAL = """
base_model: {gguf}
adapter: qlora
lora_r: 16
datasets: [{{path: {data}/train.jsonl, type: chat_template}}]
test_datasets: [{{path: {data}/heldout.jsonl, type: chat_template}}]
eval_max_samples: 4
micro_batch_size: 1
global_batch_size: 2
optimizer: adamw_8bit
max_steps: 3
learning_rate: 1e-3
compute_type: fp32
activation_checkpointing: true
threads_per_rank: 1
save_steps: 0
generate: {{heldout_prompts: 2, max_new_tokens: 8}}
"""


def check_run(runner: Runner, name: str, ranks: int, settings: dict) -> None:
    printed = runner.run(ranks, name, settings, timeout=600)
    summary = json.loads((runner.output(name) / "summary.json").read_text())
    planned, peak = summary["planned_peak_rss_bytes"], summary["peak_rss_bytes"]
    print(f"{name}: planned {planned / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB: {planned / peak:.3f}")
    assert abs(planned / peak - 1) < 0.05, f"{name}: planned {planned}, measured {peak}\n{printed}"
    sent = {line["bytes_sent"] for line in runner.lines(name)}
    assert len(sent) == 1, f"{name}: steps send different amounts: {sent}"
    assert summary["bytes_sent_per_step"] == summary["planned_bytes_sent_per_step"], (name, summary)
    assert (summary["bytes_sent_per_step"] > 0) == (ranks > 1), (name, summary)


def check_table(text: str, ranks: int) -> None:
    """A line for each rank, its purposes adding up to its total; what Python took stands apart."""
    lines = [(int(rank), float(total)) for rank, total in
             re.findall(r"^ +rank (\d+) +([0-9.]+) MB; sends", text, re.MULTILINE)]
    assert [rank for rank, _ in lines] == list(range(ranks)), text
    by_purpose, total = text.split("needs most:\n")[1].split("peak resident set")[0], max(t for _, t in lines)
    parts = [float(x) for x in re.findall(r"([0-9.]+) MB$", by_purpose, re.MULTILINE)]
    assert abs(sum(parts) - total) < 0.1 * len(parts), text


def check_tiny(runner: Runner) -> None:
    plan = runner.run(3, "plan", {}, verb="plan")
    check_table(plan, 3)
    python = re.search(r"apart from the ranks: Python text process, ([0-9.]+) MB", plan)
    assert python and 20 < float(python.group(1)) < 1000, plan
    assert not runner.output("plan").exists(), "planning leaves a run behind"
    check_run(runner, "tiny", 3, {"max_steps": 3, "save_steps": 0})


def check_real(runner: Runner) -> None:
    gguf, data = runner.args.gguf, pathlib.Path(runner.args.source) / "data" / "jargon"
    if not (os.path.exists(gguf) and data.exists()):
        raise SystemExit(f"{gguf} or {data} is missing: launch/setup.sh gets them")
    runner.config.write_text(REAL.format(gguf=gguf, data=data))
    check_run(runner, "checkpointed", 2, {"sequence_len": 256})
    check_run(runner, "kept", 2, {"sequence_len": 192, "lora_r": 8, "activation_checkpointing": "false"})


if __name__ == "__main__":
    run_checks(check_tiny, check_real, options=("gguf",))
