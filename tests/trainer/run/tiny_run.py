"""A tiny real run for tests: a random Llama of two layers, a trained tokenizer, a chat dataset; and how to start it."""
import argparse
import itertools
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
WORDS = "kluge hack bogus frob cruft grok munge foo bar baz quux lossage moby winnitude flame wizard".split()


def make_material(folder: pathlib.Path) -> None:
    """model/ (config, weights, tokenizer), train.jsonl, heldout.jsonl."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    rng = np.random.default_rng(0)

    def sentence(n: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(n))

    for name, count in (("train", 60), ("heldout", 8)):
        with open(folder / f"{name}.jsonl", "w") as out:
            for _ in range(count):
                messages = [{"role": "user", "content": f"What is a {rng.choice(WORDS)}?"},
                            {"role": "assistant", "content": sentence(int(rng.integers(4, 30)))}]
                out.write(json.dumps({"messages": messages}) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([sentence(2000), "user assistant What is a ?"], trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>",
                                                bos_token="<|im_start|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                                      bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)  # The usual 0.02 leaves so small a signal that nothing is learnt in twelve steps.
    model.save_pretrained(folder / "model")
    fast.save_pretrained(folder / "model")


CONFIG = """
base_model: {folder}/model
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.1
datasets: [{{path: {folder}/train.jsonl, type: chat_template}}]
test_datasets: [{{path: {folder}/heldout.jsonl, type: chat_template}}]
sequence_len: 96
micro_batch_size: 1
global_batch_size: 6
max_steps: 12
optimizer: adamw_8bit
min_8bit_size: 512
learning_rate: 1e-2
lr_scheduler: cosine
warmup_steps: 2
compute_type: fp32
threads_per_rank: 1
save_steps: 3
logging_steps: 100
comm: {{timeout: 60, bucket_bytes: 16KiB}}
generate: {{heldout_prompts: 1, max_new_tokens: 8}}
"""


# What takes seconds here may take minutes on a busy machine. After this long a job counts as hung.
HUNG = 300


class Runner:
    def __init__(self, binary: str, source: str, folder: pathlib.Path) -> None:
        self.binary, self.mpirun, self.folder = binary, str(pathlib.Path(source) / "launch" / "mpirun.sh"), folder
        self.config = folder / "run.yaml"
        self.config.write_text(CONFIG.format(folder=folder))

    def command(self, ranks: int, name: str, settings: dict | None = None, *more: str, verb: str = "train") -> list[str]:
        options = {"output_dir": self.folder / "runs" / name, **(settings or {})}
        sets = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
        return [self.mpirun, "-n", str(ranks), self.binary, verb, "--config", str(self.config), *sets, *more]

    def run(self, ranks: int, name: str, settings: dict | None = None, *more: str, expect: int = 0,
            verb: str = "train", timeout: float = HUNG, env: dict | None = None) -> str:
        """Runs to the end; returns stdout and stderr together."""
        done = subprocess.run(self.command(ranks, name, settings, *more, verb=verb), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=timeout, env=dict(os.environ, **(env or {})))
        assert done.returncode == expect, f"{name}: exit code {done.returncode}, want {expect}\n{done.stdout}"
        return done.stdout

    def start(self, ranks: int, name: str, settings: dict | None = None, *more: str,
              verb: str = "train") -> subprocess.Popen:
        return subprocess.Popen(self.command(ranks, name, settings, *more, verb=verb), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def kill(self, job: subprocess.Popen, name: str) -> None:
        """Ends a job at once: its launcher, and the ranks whose command line holds `name`."""
        job.kill()
        for pid in rank_pids(self.binary, name):
            tell(pid, signal.SIGKILL)
        job.communicate()
        wait_for(lambda: not rank_pids(self.binary, name), 60, "all ranks to be gone")

    def long_evaluation(self, records: int) -> dict:
        """Settings with the held-out data again and again: evaluating takes long enough to be caught at it. `plan` has
        made the cache of it."""
        path = self.folder / f"heldout{records}.jsonl"
        settings = {"test_datasets": f"[{{path: {path}, type: chat_template}}]"}
        lines = (self.folder / "heldout.jsonl").read_text().splitlines()
        path.write_text("".join(line + "\n" for line in itertools.islice(itertools.cycle(lines), records)))
        self.run(1, "long_evaluation", settings, verb="plan")
        return settings

    def output(self, name: str) -> pathlib.Path:
        return self.folder / "runs" / name

    def adapter(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.output(name) / "adapter" / "adapter_model.safetensors")

    def lines(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.output(name) / "metrics.jsonl").read_text().splitlines()]


def rank_pids(binary: str, mark: str) -> list[int]:
    """Processes of `binary` whose command line holds `mark`, lowest rank first."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0] != binary or not any(mark in word for word in words):
                continue
            env = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            rank = [int(e.split("=")[1]) for e in env if e.startswith("OMPI_COMM_WORLD_RANK=")]
            found.append((rank[0], int(entry.name)))
        except (OSError, IndexError):
            continue
    return [pid for _, pid in sorted(found)]


def one_error(text: str, *parts: str) -> str:
    """Our one message in what a job printed; it must hold `parts`. A message that lists several faults has a line for
    each, indented."""
    lines = text.splitlines()
    at = [i for i, line in enumerate(lines) if "bitshard: error:" in line]
    assert len(at) == 1, f"want one error message, got {len(at)}:\n{text}"
    message = [lines[at[0]], *itertools.takewhile(lambda line: line.startswith("  "), lines[at[0] + 1:])]
    for part in parts:
        assert part in "\n".join(message), f"the message lacks {part!r}:\n{text}"
    return "\n".join(message)


def tell(pid: int, number: int) -> None:
    """Sends a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


# What a step's line holds that does not depend on time or world size.
EXACT = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "total_tokens")


def exact_lines(lines: list[dict]) -> list[dict]:
    return [{key: line[key] for key in EXACT} for line in lines]


def same_adapter(what: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys(), f"{what}: other tensors"
    for key in a:
        assert (a[key].view(np.uint32) == b[key].view(np.uint32)).all(), f"{what}: {key} differs"


def run_checks(*checks, options: tuple[str, ...] = ()) -> None:
    """The main of a test: each of `checks` gets the Runner of one folder of material, whose args are those of the
    command line: `options` beside those of every test."""
    parser = argparse.ArgumentParser()
    for option in ("binary", "source", *options):
        parser.add_argument(f"--{option}", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_material(folder)
        runner = Runner(args.binary, args.source, folder)
        runner.args = args
        for check in checks:
            check(runner)
