"""One QLoRA trainer of transformers, PEFT and bitsandbytes: a step for every line on standard input.

Started by run.py. First prints {"tokens": ...}, then for each line of input {"seconds", "cpu_seconds", "loss"}; at the end
of input {"peak_rss_bytes"}.
"""
import argparse
import json
import pathlib
import time

import bitsandbytes
import peft
import torch
import transformers


def peak_rss_bytes() -> int:
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def load(args: argparse.Namespace) -> torch.nn.Module:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.compute_type]
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, quantization_config=quantization)
    model.config.use_cache = False
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    lora = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    # Never in evaluation mode first: bitsandbytes 0.50 repacks its weights there, and trains wrongly afterwards.
    return peft.get_peft_model(model, lora).train()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--sequence-len", type=int, required=True)
    parser.add_argument("--compute-type", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--learning-rate", type=float, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    texts = [json.loads(line)["text"] for line in pathlib.Path(args.texts).read_text(encoding="utf-8").splitlines()]
    tokens = tokenizer(texts, max_length=args.sequence_len, truncation=True, return_tensors="pt").input_ids
    model = load(args)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = bitsandbytes.optim.AdamW8bit(trained, lr=args.learning_rate, weight_decay=0.0)
    print(json.dumps({"tokens": tokens.numel()}), flush=True)
    while input_line():
        wall, cpu = time.monotonic(), time.process_time()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu,
                          "loss": loss.item()}), flush=True)
    print(json.dumps({"peak_rss_bytes": peak_rss_bytes()}), flush=True)


def input_line() -> bool:
    try:
        input()
    except EOFError:
        return False
    return True


if __name__ == "__main__":
    main()
