"""Optimizers that need norms of whole tensors, and overrides of single ones, in whole runs: the same bits at any world
size and after a resume, what was planned is sent, and what can't be meant is refused."""
import json
import shutil

from tiny_run import Runner, exact_lines, one_error, run_checks, same_adapter

OVERRIDES = ('[{pattern: "*.lora_B.*", bits: 32, learning_rate: 2e-2}, {pattern: "*.q_proj.lora_A.*", block_size: 64}, '
             '{pattern: "*.layers.1.*", weight_decay: 0.1}]')


def check_lamb(runner: Runner) -> None:
    settings = {"optimizer": "lamb_8bit", "max_steps": 6, "learning_rate": "5e-2"}
    runner.run(1, "lamb1", settings)
    runner.run(3, "lamb3", {**settings, "optimizer": "paged_lamb_8bit"})
    same_adapter("LAMB on 3 ranks against one", runner.adapter("lamb1"), runner.adapter("lamb3"))
    assert exact_lines(runner.lines("lamb1")) == exact_lines(runner.lines("lamb3")), "LAMB: metrics differ"
    summary = json.loads((runner.output("lamb3") / "summary.json").read_text())
    assert 0 < summary["bytes_sent_per_step"] == summary["planned_bytes_sent_per_step"], summary
    runner.run(1, "unlimited", {**settings, "max_unorm": 0})
    limited, unlimited = runner.adapter("lamb1"), runner.adapter("unlimited")
    assert any((limited[key] != unlimited[key]).any() for key in limited), "max_unorm changes nothing"
    print("LAMB on 1 and 3 ranks, paged: same bits; it sends what was planned")


def check_overrides(runner: Runner) -> None:
    settings = {"optimizer_overrides": OVERRIDES, "save_total_limit": 0}
    text = runner.run(1, "over1", settings)
    for part, times in (("with 32-bit state, learning rate 0.02", 2), ("learning rate 0.02, weight decay 0.1", 1),
                        ("with 8-bit state in blocks of 64", 2), ("in blocks of 64, weight decay 0.1", 1)):
        assert text.count(part) == times, f"the split has not {times} times {part!r}:\n{text}"
    runner.run(2, "over2", settings)
    same_adapter("overrides on 2 ranks against one", runner.adapter("over1"), runner.adapter("over2"))
    for later in ("checkpoint-9", "checkpoint-12", "adapter"):
        shutil.rmtree(runner.output("over2") / later)
    changed = {**settings, "optimizer_overrides": OVERRIDES.replace("64", "128")}
    one_error(runner.run(3, "over2", changed, "--resume", expect=2), "another configuration: optimizer_overrides: [",
              "block_size: 64", "block_size: 128")
    assert "6 of 12 steps done" in runner.run(3, "over2", settings, "--resume")
    same_adapter("overrides, resumed on 3 ranks", runner.adapter("over1"), runner.adapter("over2"))
    print("overrides on 1 and 2 ranks, and resumed on 3: same bits")


def check_refusals(runner: Runner) -> None:
    unmatched = {"optimizer_overrides": '[{pattern: "*.1.self_attn.q_prj.lora_A.weight", bits: 32}]'}
    for verb in ("train", "plan"):
        one_error(runner.run(2, "refused", unmatched, expect=2, verb=verb), '"*.1.self_attn.q_prj.lora_A.weight"',
                  "matches no tensor; the nearest is model.layers.1.self_attn.q_proj.lora_A.weight")
    one_error(runner.run(1, "refused", {"optimizer": "lion_8bit", "max_unorm": 1}, expect=2),
              "max_unorm: has no effect with optimizer: lion_8bit")
    print("a pattern without a tensor and a key without effect: refused")


if __name__ == "__main__":
    run_checks(check_lamb, check_overrides, check_refusals)
