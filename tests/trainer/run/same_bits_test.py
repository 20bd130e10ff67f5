"""The same adapter, losses and norms, bit for bit, at any world size, paged or not, twice; and PEFT agrees with it."""
import numpy as np
import torch
import transformers
from peft import PeftModel

from tiny_run import Runner, exact_lines, run_checks, same_adapter


def check_world_sizes(runner: Runner) -> None:
    runner.run(1, "one")
    lines = runner.lines("one")
    assert [line["step"] for line in lines] == list(range(1, 13))
    first, last = lines[0]["loss"], lines[-1]["loss"]
    print(f"loss {first:.3f} to {last:.3f}")
    assert last < first - 0.05, "the loss does not fall"
    for name, ranks, settings in (("two", 2, {}), ("two_again", 2, {}), ("three", 3, {}),
                                  ("paged", 2, {"optimizer": "paged_adamw_8bit", "paging.tier": "file",
                                                "paging.budget": "16MiB"})):
        runner.run(ranks, name, settings)
        same_adapter(f"{name} against one rank", runner.adapter("one"), runner.adapter(name))
        assert exact_lines(runner.lines(name)) == exact_lines(lines), f"{name}: metrics differ from one rank's"
    print("1, 2 and 3 ranks, a second run and a paged one: same bits")


def check_against_peft(runner: Runner) -> None:
    """PEFT puts our adapter onto a base that holds our dequantised weights: the same logits in float32, up to the
    rounding of sums of some hundred terms in another order."""
    base = runner.folder / "base"
    runner.run(1, "export", {}, "--export", "hf", "--output", str(base), verb="quantize")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tuned = PeftModel.from_pretrained(model, runner.output("one") / "adapter").eval()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is a kluge?"}], add_generation_prompt=True,
                                        return_tensors="pt", return_dict=True)["input_ids"]
    out = tuned.generate(ids, max_new_tokens=8, do_sample=False)
    theirs = tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)
    ours = runner.run(1, "generate", {}, "--adapter", str(runner.output("one") / "adapter"), "--prompt",
                      "What is a kluge?", verb="generate")
    assert f"A: {theirs}" in ours, f"PEFT answers {theirs!r}, bitshard:\n{ours}"

    records = [line for line in (runner.folder / "heldout.jsonl").read_text().splitlines()]
    nats = count = 0.0
    import json
    for record in records:
        messages = json.loads(record)["messages"]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        # Trained: the answer and its end-of-turn token, not the newline after it.
        end = max(i for i, t in enumerate(whole) if t == tokenizer.eos_token_id) + 1
        whole = whole[:end]
        with torch.no_grad():
            logits = tuned(input_ids=torch.tensor([whole])).logits[0].double()
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(whole[1:]), reduction="none")
        nats += loss[len(prompt) - 1:].sum().item()
        count += end - len(prompt)
    summary = json.loads((runner.output("one") / "summary.json").read_text())
    assert abs(nats / count - summary["heldout_loss_after"]) < 2e-4, (nats / count, summary)
    print(f"PEFT: same answer, held-out loss {nats / count:.6f} and ours {summary['heldout_loss_after']:.6f}")


if __name__ == "__main__":
    run_checks(check_world_sizes, check_against_peft)
