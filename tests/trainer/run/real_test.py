"""The main job on a real model: QLoRA of SmolLM2 on two ranks learns, and PEFT, with the base that bitshard exports
from the GGUF file and the adapter that it wrote, has the same logits."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from peft import PeftModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "model"))
from decoder_oracle_test import Tool, close  # noqa: E402
from tiny_run import Runner  # noqa: E402

CONFIG = """
base_model: {gguf}
adapter: qlora
lora_r: 16
lora_alpha: 32
datasets: [{{path: {data}/train.jsonl, type: chat_template}}]
test_datasets: [{{path: {data}/heldout.jsonl, type: chat_template}}]
sequence_len: 128
eval_max_samples: 24
micro_batch_size: 1
global_batch_size: 4
max_steps: 10
learning_rate: 2e-3
lr_scheduler: cosine
warmup_steps: 1
compute_type: fp32
threads_per_rank: 1
generate: {{heldout_prompts: 1, max_new_tokens: 12}}
"""


def check_training(runner: Runner, source: pathlib.Path) -> None:
    runner.run(2, "real", {}, timeout=900)
    summary = json.loads((runner.output("real") / "summary.json").read_text())
    before, after = summary["heldout_loss_before"], summary["heldout_loss_after"]
    print(f"held-out loss {before:.4f} to {after:.4f} in {summary['seconds']:.0f} s")
    assert before - after >= 0.3, f"the held-out loss falls by {before - after:.3f}, want 0.3"
    answers = json.loads((runner.output("real") / "answers.json").read_text())
    assert len(answers) == 1 and answers[0]["before"] and answers[0]["after"], answers

    # The quickstart's last words: its promise kept, and broken.
    show = [sys.executable, str(source / "launch" / "show_run.py"), str(runner.output("real"))]
    subprocess.run(show, check=True, stdout=subprocess.DEVNULL)
    short = runner.folder / "short"
    short.mkdir()
    (short / "summary.json").write_text(json.dumps({**summary, "heldout_loss_after": before - 0.29}))
    done = subprocess.run([*show[:-1], str(short)], capture_output=True, text=True)
    assert done.returncode == 1 and "0.29" in done.stderr and "0.3" in done.stderr, done


def check_logits(runner: Runner, tool: Tool, gguf: str) -> None:
    base, adapter = runner.folder / "base", runner.output("real") / "adapter"
    runner.run(1, "export", {}, "--export", "hf", "--output", str(base), verb="quantize", timeout=600)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What does \"kluge\" mean to a hacker?"}],
                                        add_generation_prompt=True, return_dict=True)["input_ids"]
    ours = tool.run(model=gguf, tokens=[ids], adapter_folder=str(adapter))["logits"]
    plain = tool.run(model=gguf, tokens=[ids])["logits"]
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, adapter).eval()(input_ids=torch.tensor([ids])).logits[0].numpy()
    ours, plain = ours.reshape(theirs.shape), plain.reshape(theirs.shape)
    # Both compute in float32 (unit 6e-8) on the same weights. A sum of up to 1536 products in another order is off by
    # about sqrt(1536) units, 2.3e-6 of its size; 30 blocks of 7 such layers add up as independent errors do:
    # sqrt(210) * 2.3e-6 = 3.4e-5 of the largest logit. A factor of 3 for the norms and the attention between them.
    close("logits through PEFT", ours, theirs, 1e-4)
    assert np.abs(plain - ours).max() > 0.05 * np.abs(ours).max(), "the adapter changes nothing: nothing is tested"
    print(f"PEFT's logits differ by at most {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--gguf", required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    source = pathlib.Path(args.source)
    data = source / "data" / "jargon"
    if not (os.path.exists(args.gguf) and data.exists()):
        raise SystemExit(f"{args.gguf} or {data} is missing: launch/setup.sh gets them")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        runner = Runner(args.binary, args.source, folder)
        runner.config.write_text(CONFIG.format(gguf=args.gguf, data=data))
        check_training(runner, source)
        check_logits(runner, Tool(args.tool, folder), args.gguf)


if __name__ == "__main__":
    main()
