"""Logits, losses and LoRA gradients of the decoder against transformers + PEFT on the same (dequantised) weights."""
import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

MODULES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
SAMPLES = [[5, 9, 33, 7, 2, 91, 14, 60, 3, 17, 88, 41, 6], [11, 4, 4, 77], list(range(20, 90))]


def tiny(kind: str) -> transformers.PreTrainedModel:
    """A random model of each family with every feature that the family adds."""
    torch.manual_seed(3)
    shape = dict(vocab_size=101, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5)
    if kind == "llama":
        config = transformers.LlamaConfig(**shape, tie_word_embeddings=True, rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    elif kind == "mistral":
        config = transformers.MistralConfig(**shape, sliding_window=16, head_dim=16)
    elif kind == "qwen2":
        config = transformers.Qwen2Config(**shape)
    else:
        config = transformers.Qwen3Config(**shape, head_dim=24)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:  # Norms and biases start as ones and zeros, which would hide mistakes.
                p.add_(torch.randn_like(p) * 0.2)
            else:
                p.mul_(3.0)
    return model


class Tool:
    def __init__(self, tool: str, folder: pathlib.Path) -> None:
        self.tool, self.folder = tool, folder

    def run(self, **request) -> dict:
        out = str(self.folder / "out")
        path = self.folder / "request.json"
        path.write_text(json.dumps(dict(request, out=out)))
        subprocess.run([self.tool, str(path)], check=True)
        result = {"prefix": out}
        for name in ("logits", "loss", "grads", "adapter", "weights"):
            file = pathlib.Path(f"{out}.{name}")
            if file.exists():
                result[name] = np.fromfile(file, dtype=np.float32)
                file.unlink()
        result["layout"] = [(n, int(o), [int(d) for d in s.split(",")]) for n, o, s in
                            (line.split() for line in pathlib.Path(f"{out}.layout").read_text().splitlines())]
        return result


def use_weights(model, flat: np.ndarray) -> None:
    """Replaces the Linear weights of the blocks by the decoder's dequantised ones."""
    at = 0
    with torch.no_grad():
        for layer in model.model.layers:
            for name in MODULES:
                weight = layer.get_submodule(name).weight
                weight.copy_(torch.from_numpy(flat[at:at + weight.numel()].reshape(weight.shape)))
                at += weight.numel()
    assert at == flat.size


def reference(model, samples, lora, ours: dict):
    """Logits [tokens, vocab], nats per token, gradients by our names; samples run one at a time."""
    if lora:
        model = get_peft_model(model, LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], use_rslora=lora["rslora"],
                                                 target_modules=lora["targets"]))
        with torch.no_grad():
            for name, offset, shape in ours["layout"]:
                p = model.get_parameter("base_model.model." + name.replace(".weight", ".default.weight"))
                p.copy_(torch.from_numpy(ours["adapter"][offset:offset + p.numel()].reshape(shape)))
    logits, nats, total = [], [], 0
    for sample in samples:
        ids = torch.tensor([sample])
        out = model(input_ids=ids).logits[0].float()
        logits.append(out.detach().numpy())
        loss = torch.nn.functional.cross_entropy(out[:-1], ids[0, 1:], reduction="none")
        nats.append(np.append(loss.detach().numpy(), 0.0))
        total = total + loss.sum()
    grads = {}
    if lora:
        total.backward()
        for name, _, _ in ours["layout"]:
            grads[name] = model.get_parameter(
                "base_model.model." + name.replace(".weight", ".default.weight")).grad.numpy()
    return np.concatenate(logits), np.concatenate(nats), grads


def close(what: str, ours: np.ndarray, theirs: np.ndarray, bound: float) -> None:
    """Largest difference, relative to the largest value; NaN fails."""
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12)
    assert error <= bound, f"{what}: relative error {error:.3e}, want at most {bound:.1e}"


def random_adapter(tool: Tool, request: dict, folder: pathlib.Path) -> str:
    """Both matrices random: with B = 0, as training starts, A's gradient and half of the formula would not show."""
    size = tool.run(**request)["adapter"].size
    path = folder / "adapter.f32"
    (np.random.default_rng(0).standard_normal(size).astype(np.float32) * 0.05).tofile(path)
    return str(path)


def check(kind: str, tool: Tool, folder: pathlib.Path, compute: str, simd_note: str = "") -> None:
    model = tiny(kind)
    model.save_pretrained(folder / kind)
    lora = {"r": 4, "alpha": 8.0, "rslora": kind == "qwen2",
            "targets": ["q_proj", "v_proj", "down_proj"] if kind == "mistral" else
                       ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    request = dict(model=str(folder / kind), tokens=SAMPLES, compute=compute, weights=True, **lora)
    request["adapter"] = random_adapter(tool, request, folder)
    ours = tool.run(**request)
    use_weights(model, ours["weights"])
    logits, nats, grads = reference(model, SAMPLES, lora, ours)
    # float32: rounding of sums of some hundred terms in another order. bfloat16 has 8 bits; transformers stays in
    # float32 here, so the bound is that of bfloat16 itself over three blocks.
    bound, grad_bound = (2e-5, 1e-4) if compute == "fp32" else (4e-2, 8e-2)
    close(f"{kind} {compute} logits", ours["logits"].reshape(logits.shape), logits, bound)
    close(f"{kind} {compute} loss", ours["loss"], nats, bound)
    for name, offset, shape in ours["layout"]:
        close(f"{kind} {compute} {name}", ours["grads"][offset:offset + grads[name].size].reshape(shape), grads[name],
              grad_bound)
    request["checkpointing"] = False
    kept = tool.run(**request)
    for name in ("logits", "loss", "grads"):
        assert (kept[name].view(np.uint32) == ours[name].view(np.uint32)).all(), f"{kind}: checkpointing changes {name}"
    print(f"{kind} {compute}: ok{simd_note}")


def check_packing(tool: Tool, folder: pathlib.Path) -> None:
    """Samples in one pack do not see each other: the same loss as alone (products of another number of rows round
    differently), and not one bit of it depends on what another sample says."""
    for compute, token_bound, mean_bound in (("fp32", 1e-4, 1e-6), ("bf16", 2e-2, 5e-3)):
        for kind in ("llama", "mistral"):
            request = dict(model=str(folder / kind), compute=compute)
            packed = tool.run(tokens=SAMPLES, **request)["loss"]
            alone = np.concatenate([tool.run(tokens=[sample], **request)["loss"] for sample in SAMPLES])
            assert np.abs(packed - alone).max() <= token_bound, (kind, compute, np.abs(packed - alone).max())
            assert abs(packed.mean() - alone.mean()) <= mean_bound, (kind, compute, packed.mean() - alone.mean())
            others = [[(token * 7 + 1) % 101 for token in SAMPLES[0]], *SAMPLES[1:]]
            changed = tool.run(tokens=others, **request)["loss"]
            first = len(SAMPLES[0])
            assert (changed[:first] != packed[:first]).any(), "the changed sample's loss stays: nothing is tested"
            assert (changed[first:].view(np.uint32) == packed[first:].view(np.uint32)).all(), f"{kind} {compute}: leaks"
            # Nor on how much of another one is trained on: the rows of logits are fewer then.
            before = len(SAMPLES[0]) + len(SAMPLES[1])
            masked = tool.run(tokens=SAMPLES, prompts=[0, 0, len(SAMPLES[2]) - 9], **request)["loss"]
            assert np.count_nonzero(masked[before:]) == 9, "the mask is not used: nothing is tested"
            assert (masked[:before].view(np.uint32) == packed[:before].view(np.uint32)).all(), f"{kind} {compute}: mask"
            print(f"{kind} {compute}: packed and alone differ by {np.abs(packed - alone).max():.1e} a token, "
                  f"{abs(packed.mean() - alone.mean()):.1e} in the mean")


def check_real_model(gguf: str, tool: Tool) -> None:
    """The whole SmolLM2 in float32, unquantised, against transformers' own GGUF loader."""
    path = pathlib.Path(gguf)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    samples = [[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511], list(range(300, 360))]
    ours = tool.run(model=gguf, tokens=samples, load_in_4bit=False)
    logits, nats, _ = reference(model, samples, None, ours)
    difference = np.abs(ours["logits"].reshape(logits.shape) - logits).max()
    assert difference < 1e-3, f"SmolLM2 logits differ by {difference}"
    close("SmolLM2 loss", ours["loss"], nats, 1e-5)
    print(f"SmolLM2-135M: largest difference of a logit {difference:.1e}")


def check_real_packing(gguf: str, tool: Tool) -> None:
    """Sums of hundreds of terms, as in real models: a token's loss in float32 has the same bits whatever stands beside it
    in the pack, and however many rows there are."""
    samples = [[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511], list(range(300, 360)), list(range(900, 1000))]
    packed = tool.run(model=gguf, tokens=samples)["loss"]
    alone = np.concatenate([tool.run(model=gguf, tokens=[sample])["loss"] for sample in samples])
    assert (packed.view(np.uint32) == alone.view(np.uint32)).all(), f"by up to {np.abs(packed - alone).max():.1e} a token"
    print("SmolLM2-135M: packed and alone have the same bits")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    parser.add_argument("--gguf", required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tool = Tool(args.tool, folder)
        for kind in ("llama", "mistral", "qwen2", "qwen3"):
            check(kind, tool, folder, "fp32")
        check("llama", tool, folder, "bf16")
        check("qwen3", tool, folder, "bf16")
        check_packing(tool, folder)
        check_real_model(args.gguf, tool)
        check_real_packing(args.gguf, tool)


if __name__ == "__main__":
    main()
