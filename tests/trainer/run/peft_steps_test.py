"""Whole steps against PEFT, torch's AdamW and clip_grad_norm_, and transformers' schedule; and the logits of PEFT with
the adapter and base that bitshard wrote."""
import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from peft import PeftModel
from safetensors.numpy import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "model"))
from decoder_oracle_test import Tool, close  # noqa: E402
from tiny_run import Runner, make_material  # noqa: E402

STEPS, SAMPLES, RATE = 4, 12, 1e-2
# A global batch is all samples, so their order is of no matter; micro-batches of two samples of unequal length.
SETTINGS = {"sample_packing": "false", "micro_batch_size": 2, "global_batch_size": SAMPLES, "max_steps": STEPS,
            "lora_dropout": 0, "optimizer": "adamw_torch", "weight_decay": 0.1, "learning_rate": RATE, "seed": 1}


@dataclasses.dataclass(frozen=True)
class Case:
    """What one run is asked for, beside SETTINGS, and what transformers calls it."""
    name: str
    settings: dict
    schedule: str
    warmup: int
    clip: float  # Infinite: never.
    epsilon: float

    def all_settings(self) -> dict:
        return SETTINGS | self.settings | {"warmup_steps": self.warmup, "adam_epsilon": self.epsilon,
                                           "max_grad_norm": 0 if self.clip == math.inf else self.clip}


CASES = (Case("all", {"lr_scheduler": "cosine"}, "cosine", 1, 0.05, 1e-5),
         # What is not clipped has larger gradients, and errors of them: eps is larger too.
         Case("named", {"lr_scheduler": "linear", "use_rslora": "true", "lora_target_modules": "[q_proj, down_proj]",
                        "activation_checkpointing": "false"}, "linear", 2, math.inf, 1e-3))


def tokens_of(tokenizer, record: str) -> tuple[list[int], int]:
    """The sample, and how many of its tokens are the prompt. Trained: the answer and its end-of-turn token."""
    messages = json.loads(record)["messages"]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    return whole[:max(i for i, t in enumerate(whole) if t == tokenizer.eos_token_id) + 1], len(prompt)


def tuned_model(base: pathlib.Path, adapter: pathlib.Path, trainable: bool):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable)


def reference(case: Case, base: pathlib.Path, adapter: pathlib.Path, samples) -> tuple[list[tuple[float, float, float]], dict]:
    """(loss, gradient norm, learning rate) of each step, and the parameters after the last."""
    model = tuned_model(base, adapter, True)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, betas=(0.9, 0.999), eps=case.epsilon,
                                  weight_decay=0.1)
    schedule = transformers.get_scheduler(case.schedule, optimizer, case.warmup, STEPS)
    trained = sum(len(tokens) - prompt for tokens, prompt in samples)
    done = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for tokens, prompt in samples:
            logits = model(input_ids=torch.tensor([tokens])).logits[0]
            nats = torch.nn.functional.cross_entropy(logits[prompt - 1:-1], torch.tensor(tokens[prompt:]),
                                                     reduction="sum")
            (nats / trained).backward()
            total += nats.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), case.clip).item()
        done.append((total / trained, norm, schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return done, {name.replace(".default", ""): p.detach().numpy() for name, p in parameters.items()}


def check_steps(runner: Runner, case: Case, base: pathlib.Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    samples = [tokens_of(tokenizer, r) for r in (runner.folder / "train.jsonl").read_text().splitlines()]
    assert len({len(tokens) - prompt for tokens, prompt in samples}) > 3, "micro-batches of equal length"
    # The adapter that training starts from: one step at a rate of (nearly) nothing leaves it as it was.
    runner.run(1, f"start-{case.name}", case.all_settings() | {"max_steps": 1, "learning_rate": 1e-30, "warmup_steps": 0})
    start = runner.output(f"start-{case.name}") / "adapter"
    steps, parameters = reference(case, base, start, samples)
    runner.run(2, case.name, case.all_settings())
    lines = runner.lines(case.name)
    # Both compute in float32, whose unit is 6e-8, and sum some hundred terms in another order: 1e-6 of a value of full
    # size, and ten times that through two blocks and back; after the first step the parameters differ too, see below.
    for line, (loss, norm, rate) in zip(lines, steps, strict=True):
        assert abs(line["loss"] / loss - 1) < 1e-5, (line, loss)
        assert abs(line["grad_norm"] / norm - 1) < 1e-4, (line, norm)
        assert case.clip == math.inf or norm > 2 * case.clip, "clipping is not active"
        # The schedule's rate of step k is that of torch's scheduler after k - 1 steps; warm-up begins at 0 there.
        assert abs(line["learning_rate"] - rate) <= 1e-12 * RATE, (line, rate)
    ours = runner.adapter(case.name)
    assert ours.keys() == parameters.keys(), sorted(set(ours) ^ set(parameters))
    moved = 0.0
    # A gradient element is at most the norm, clipped, and is off by at most 1e-5 of that; AdamW divides by sqrt(v) + eps,
    # so an update is off by at most rate * 1e-5 * norm / eps, three updates (the first rate is 0) by the bound; where |g|
    # is well above eps the error is 1e-5 of the update instead.
    bound = 3e-5 * max(min(norm, case.clip) for _, norm, _ in steps) / case.epsilon
    assert bound < 0.2, f"{bound}: too wide to show anything"
    for name, theirs in parameters.items():
        error = np.abs(ours[name] - theirs)
        assert error.max() < bound * RATE, f"{name}: {error.max():.2e}"
        assert np.sqrt((error ** 2).mean()) < 2e-3 * RATE, f"{name}: {np.sqrt((error ** 2).mean()):.2e} on average"
        moved = max(moved, np.abs(theirs - load_file(start / "adapter_model.safetensors")[name]).max())
    assert moved > 0.5 * RATE, "the adapter has not moved"
    print(f"{case.name}: " + ", ".join(f"loss {a:.6f} norm {b:.5f} rate {c:.4g}" for a, b, c in steps))


def check_logits(runner: Runner, tool: Tool, base: pathlib.Path, name: str) -> None:
    """Through files alone: PEFT loads the exported base and the written adapter, bitshard the model and the adapter."""
    adapter = runner.output(name) / "adapter"
    tuned = tuned_model(base, adapter, False).eval()
    tokens = [list(range(5, 70)), [7, 300, 12, 12, 9]]
    ours = tool.run(model=str(runner.folder / "model"), tokens=tokens, adapter_folder=str(adapter))["logits"]
    plain = tool.run(model=str(runner.folder / "model"), tokens=tokens)["logits"]
    with torch.no_grad():
        theirs = np.concatenate([tuned(input_ids=torch.tensor([sample])).logits[0].numpy() for sample in tokens])
    # Sums of at most 128 terms in another order: sqrt(128) units of 6e-8 each; 14 products and two attentions, whose
    # errors add up as independent ones do, make 3e-6 of the largest logit. A factor of 5 for the norms between them.
    close("logits through PEFT", ours.reshape(theirs.shape), theirs, 1.5e-5)
    assert np.abs(plain - ours).max() > 1e-2 * np.abs(ours).max(), "the adapter changes nothing: nothing is tested"
    print(f"PEFT's logits differ by at most {np.abs(ours.reshape(theirs.shape) - theirs).max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--tool", required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_material(folder)
        train = folder / "train.jsonl"
        train.write_text("\n".join(train.read_text().splitlines()[:SAMPLES]) + "\n")
        runner = Runner(args.binary, args.source, folder)
        base = folder / "base"
        runner.run(1, "export", {}, "--export", "hf", "--output", str(base), verb="quantize")
        for case in CASES:
            check_steps(runner, case, base)
            check_logits(runner, Tool(args.tool, folder), base, case.name)


if __name__ == "__main__":
    main()
