"""Our GGUF reader against PyPI gguf (dequantisation) and transformers (names, shapes, rotary order, config)."""

from __future__ import annotations

import pathlib
import tempfile
import unittest

import gguf
import io_tool
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

REAL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUANT_TYPES = ("Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32")


def random_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows of very different sizes, with exact zeros, so that block scales span binary16's range."""
    scale = 10.0 ** rng.uniform(-9, 4, size=(rows, 1))
    values = (rng.standard_normal((rows, columns)) * scale).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = 0.0
    return values


class Dequantisation(unittest.TestCase):
    def test_every_encoding_has_the_bits_of_pypi_gguf(self) -> None:
        rng = np.random.default_rng(1)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "types.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            for name in QUANT_TYPES:
                kind = gguf.GGMLQuantizationType[name]
                data = gguf.quantize(random_rows(rng, 97, 160), kind)
                writer.add_tensor(name, data, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            io_tool.check("gguf", path, folder)
            _, ours = io_tool.load_dump(pathlib.Path(folder))
            for tensor in gguf.GGUFReader(path).tensors:
                theirs = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
                self.assertEqual(theirs.shape, (97, 160), tensor.name)
                self.assertTrue(io_tool.bits_equal(ours[tensor.name], theirs), tensor.name)

    def test_every_16_bit_pattern_widens_exactly(self) -> None:
        patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
        expected = {
            "F16": patterns.view(np.float16).astype(np.float32),
            "BF16": (patterns.astype(np.uint32) << 16).view(np.float32),
        }
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "patterns.gguf"
            writer = gguf.GGUFWriter(path, "llama")
            writer.add_tensor("F16", patterns.view(np.float16))
            writer.add_tensor("BF16", patterns.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            io_tool.check("gguf", path, folder)
            _, ours = io_tool.load_dump(pathlib.Path(folder))
            for name, want in expected.items():
                # Hardware turns a signalling NaN into a quiet one on the way; that it is one must stay.
                self.assertTrue(np.array_equal(np.isnan(ours[name]), np.isnan(want)), name)
                numbers = ~np.isnan(want)
                self.assertEqual(int(numbers.sum()), {"F16": 63490, "BF16": 65282}[name])
                self.assertTrue(io_tool.bits_equal(ours[name][numbers], want[numbers]), name)


def write_model(path: pathlib.Path, architecture: str, rope_factors: np.ndarray | None = None) -> None:
    """A tiny random model of the architecture, with the head size (qwen3) or biases (qwen2) that it has."""
    rng = np.random.default_rng(2)
    hidden, inner, heads, kv_heads, vocab, layers = 64, 96, 4, 2, 40, 2
    # transformers reads no head size from a qwen3 file: it takes Qwen3Config's default.
    head_dim = 128 if architecture == "qwen3" else hidden // heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(vocab)
    writer.add_bos_token_id(3)
    writer.add_eos_token_id(4)
    writer.add_eot_token_id(5)
    if architecture == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)

    def add(name: str, *shape: int, kind: str = "F32") -> None:
        quantised = gguf.GGMLQuantizationType[kind]
        values = rng.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, quantised), raw_dtype=quantised)

    add("token_embd.weight", vocab, hidden, kind="Q8_0")
    add("output.weight", vocab, hidden, kind="F16")
    add("output_norm.weight", hidden)
    for i in range(layers):
        layer = f"blk.{i}."
        add(layer + "attn_norm.weight", hidden)
        add(layer + "ffn_norm.weight", hidden)
        add(layer + "attn_q.weight", heads * head_dim, hidden, kind="Q4_0")
        add(layer + "attn_k.weight", kv_heads * head_dim, hidden, kind="BF16")
        add(layer + "attn_v.weight", kv_heads * head_dim, hidden)
        add(layer + "attn_output.weight", hidden, heads * head_dim)
        add(layer + "ffn_gate.weight", inner, hidden, kind="Q4_1")
        add(layer + "ffn_up.weight", inner, hidden, kind="Q8_0")
        add(layer + "ffn_down.weight", hidden, inner)
        if architecture == "qwen2":
            add(layer + "attn_q.bias", heads * head_dim)
            add(layer + "attn_k.bias", kv_heads * head_dim)
            add(layer + "attn_v.bias", kv_heads * head_dim)
        if architecture == "qwen3":
            add(layer + "attn_q_norm.weight", head_dim)
            add(layer + "attn_k_norm.weight", head_dim)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class WholeModels(unittest.TestCase):
    def compare(self, path: pathlib.Path) -> dict[str, object]:
        """All tensors against transformers' own loader; returns our config."""
        with tempfile.TemporaryDirectory() as folder:
            io_tool.check("dump", path, folder)
            config, ours = io_tool.load_dump(pathlib.Path(folder))
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            theirs = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
            if model.config.tie_word_embeddings:
                theirs.pop("lm_head.weight")
            self.assertEqual(sorted(ours), sorted(theirs))
            for name, values in theirs.items():
                self.assertTrue(io_tool.bits_equal(ours[name], values), f"{path.name}: {name}")
            for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                        "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "bos_token_id"):
                self.assertEqual(config[key], getattr(model.config, key), key)
            self.assertEqual(np.float32(config["rms_norm_eps"]), np.float32(model.config.rms_norm_eps))
            self.assertEqual(config["rope_theta"], model.config.rope_parameters["rope_theta"])
        return config

    def test_smollm2_is_what_transformers_reads(self) -> None:
        path = io_tool.MODELS / REAL_MODEL
        self.assertTrue(path.is_file(), f"{path} is missing: tests/run.sh downloads it")
        config = self.compare(path)
        self.assertEqual(config["eos_token_ids"], [2])
        self.assertEqual(config["rms_norm_eps"], 1e-5)
        self.assertEqual(config["head_dim"], 64)

    def test_each_architecture_is_what_transformers_reads(self) -> None:
        for architecture in ("llama", "qwen2", "qwen3"):
            with self.subTest(architecture), tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / f"{architecture}.gguf"
                write_model(path, architecture)
                config = self.compare(path)
                self.assertEqual(config["model_type"], architecture)
                self.assertEqual(config["head_dim"], 128 if architecture == "qwen3" else 16)
                self.assertEqual(config["eos_token_ids"], [4, 5])
                self.assertEqual(config["qkv_bias"], architecture == "qwen2")
                self.assertEqual(config["qk_norm"], architecture == "qwen3")

    def test_llama3_rope_scaling_is_read_off_its_factors(self) -> None:
        parameters = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        config = AutoConfig.for_model("llama", hidden_size=64, num_attention_heads=4, max_position_embeddings=131072,
                                      rope_parameters=parameters)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "llama3.gguf"
            write_model(path, "llama", (plain / scaled.double()).numpy())
            io_tool.check("dump", path, folder)
            ours, _ = io_tool.load_dump(pathlib.Path(folder))
            self.assertEqual(ours["rope_kind"], "llama3")
            self.assertAlmostEqual(ours["rope_factor"], 32.0, places=3)
            write_model(path, "llama", np.full(8, 3.0))
            refused = io_tool.run("dump", path, folder)
            self.assertEqual(refused.returncode, 3)
            self.assertIn("rope_freqs.weight", refused.stderr)


if __name__ == "__main__":
    io_tool.main()
