"""Our reading and writing of Hugging Face folders and PEFT adapters against transformers and PEFT."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
import unittest
import unittest.mock

import io_tool
import numpy as np
import peft
import safetensors.torch
import torch
import transformers
from transformers import AutoModelForCausalLM

SIZES = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# Name -> (config, shard size). Between them: each architecture, single files and shards, tied and untied heads, each
# rope scaling, head_dim given and derived, one end token and several, windows.
VARIANTS = {
    "llama": (transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3), "5GB"),
    "llama-tied-sharded": (transformers.LlamaConfig(**SIZES | {"eos_token_id": [2, 7]}, tie_word_embeddings=True,
                                                    rope_parameters={"rope_type": "linear", "factor": 2.0,
                                                                     "rope_theta": 10000.0}), "100KB"),
    "mistral": (transformers.MistralConfig(**SIZES, sliding_window=16, head_dim=32), "5GB"),
    "qwen2-sharded": (transformers.Qwen2Config(**SIZES), "60KB"),
    "qwen3": (transformers.Qwen3Config(**SIZES, head_dim=24, tie_word_embeddings=True), "5GB"),
}
CONFIG_KEYS = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
               "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
               "tie_word_embeddings", "bos_token_id", "pad_token_id")


def make_model(config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Norms and biases would all be ones and zeros.
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    tensors = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return tensors


def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(40).remainder(47).reshape(1, 40)
    with torch.no_grad():
        return model(tokens).logits


class FolderTest(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)

    def dump(self, folder: object) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        out = self.root / "dump"
        out.mkdir(exist_ok=True)
        io_tool.check("dump", folder, out)
        return io_tool.load_dump(out)

    def assert_same_tensors(self, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
        self.assertEqual(sorted(ours), sorted(theirs))
        for name, values in theirs.items():
            self.assertTrue(io_tool.bits_equal(ours[name], values), name)

    def assert_refused(self, folder: object, *texts: str) -> None:
        done = io_tool.run("dump", folder, self.root)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for text in texts:
            self.assertIn(text, done.stderr)

    def edit_config(self, folder: pathlib.Path, **changes: object) -> None:
        """Sets keys of config.json; None removes one."""
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in (config | changes).items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))


class Reading(FolderTest):
    def test_folders_of_transformers_are_read_back_equal(self) -> None:
        for name, (config, shard) in VARIANTS.items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                with self.subTest(name, dtype=dtype):
                    model = make_model(config, dtype)
                    folder = self.root / f"{name}-{dtype}"
                    model.save_pretrained(folder, max_shard_size=shard)
                    self.assertEqual((folder / "model.safetensors").exists(), shard == "5GB")
                    ours, tensors = self.dump(folder)
                    self.assert_same_tensors(tensors, state(model))
                    for key in CONFIG_KEYS:
                        self.assertEqual(ours[key], getattr(model.config, key), key)
                    rope = model.config.rope_parameters
                    self.assertEqual(ours["rope_theta"], rope["rope_theta"])
                    self.assertEqual(ours["rope_kind"], rope["rope_type"])
                    self.assertEqual(ours["rope_factor"], rope.get("factor", 1.0))
                    eos = config.eos_token_id
                    self.assertEqual(ours["eos_token_ids"], eos if isinstance(eos, list) else [eos])
                    head_dim = getattr(config, "head_dim", None) or 64 // 4
                    self.assertEqual(ours["head_dim"], head_dim)
                    window = getattr(config, "sliding_window", None) or 0
                    self.assertEqual(ours["sliding_window"], window)

    def test_configs_of_transformers_4_are_read(self) -> None:
        model = make_model(VARIANTS["llama"][0])
        folder = self.root / "old"
        model.save_pretrained(folder)
        scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
        for spelling in ("rope_type", "type"):
            scaling = {spelling if key in ("rope_type", "type") else key: value for key, value in scaling.items()}
            self.edit_config(folder, rope_parameters=None, dtype=None, head_dim=None, rope_theta=500000.0,
                             torch_dtype="float32", rope_scaling=scaling)
            config, tensors = self.dump(folder)
            self.assertEqual((config["rope_theta"], config["rope_kind"], config["rope_factor"]),
                             (500000.0, "llama3", 8.0))
            self.assertEqual(config["rope_original_max_position_embeddings"], 64)
            self.assertEqual(config["head_dim"], 16)
            self.assert_same_tensors(tensors, state(model))

    def test_end_tokens_of_generation_config_are_added(self) -> None:
        folder = self.root / "eos"
        make_model(VARIANTS["qwen3"][0]).save_pretrained(folder)
        (folder / "generation_config.json").write_text('{"eos_token_id": [9, 2]}')
        config, _ = self.dump(folder)
        self.assertEqual(config["eos_token_ids"], [2, 9])

    def test_hub_names_are_looked_up_in_the_cache(self) -> None:
        model = make_model(VARIANTS["llama"][0])
        repository = self.root / "hub" / "models--org--tiny"
        snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
        model.save_pretrained(snapshot)
        blobs.mkdir()
        for file in list(snapshot.iterdir()):  # As the hub's cache has it: links to blobs.
            shutil.move(file, blobs / file.name)
            file.symlink_to(pathlib.Path("../../blobs") / file.name)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0123abc")
        for variable, value in (("HF_HUB_CACHE", self.root / "hub"), ("HF_HOME", self.root)):
            with unittest.mock.patch.dict(os.environ, {variable: str(value)}):
                _, tensors = self.dump("org/tiny")
                self.assert_same_tensors(tensors, state(model))
                self.assert_refused("org/other", "hf download org/other")
        (repository / "refs" / "main").write_text("../../../etc")
        with unittest.mock.patch.dict(os.environ, {"HF_HUB_CACHE": str(self.root / "hub")}):
            self.assert_refused("org/tiny", "refs/main", "hf download org/tiny")

    def test_what_would_be_another_model_is_refused(self) -> None:
        cases = {
            "gemma": ({"model_type": "gemma2"}, ("config.json: model_type", "llama, mistral, qwen2, qwen3")),
            "quantised": ({"quantization_config": {"quant_method": "bitsandbytes"}},
                          ("config.json: quantization_config", "full precision")),
            "activation": ({"hidden_act": "gelu"}, ("config.json: hidden_act", "silu")),
            "bias": ({"attention_bias": True}, ("config.json: attention_bias",)),
            "rope": ({"rope_parameters": LLAMA3 | {"rope_type": "yarn"}}, ("rope_parameters: rope_type", "llama3")),
            "partial": ({"rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
            "heads": ({"num_key_value_heads": 3}, ("num_key_value_heads", "divisor")),
            "layers": ({"num_hidden_layers": 2}, ("model.layers.2.", "no part")),
            "more layers": ({"num_hidden_layers": 4}, ("model.layers.3.", "missing")),
            "width": ({"intermediate_size": 95}, ("gate_proj.weight", "[96, 64]", "[95, 64]")),
            "vocabulary": ({"vocab_size": 51}, ("embed_tokens.weight", "[50, 64]", "[51, 64]")),
            "type": ({"hidden_size": "64"}, ("config.json: hidden_size", "integer")),
            "missing": ({"hidden_size": None}, ("config.json: hidden_size: missing",)),
            "negative": ({"num_hidden_layers": -1}, ("config.json: num_hidden_layers",)),
            "tied": ({"tie_word_embeddings": True}, ("lm_head.weight", "tie_word_embeddings")),
            "token": ({"eos_token_id": [2, 50]}, ("eos_token_id", "50 tokens")),
        }
        original = self.root / "original"
        make_model(VARIANTS["llama"][0]).save_pretrained(original)
        for name, (changes, texts) in cases.items():
            with self.subTest(name):
                folder = self.root / name
                shutil.copytree(original, folder)
                self.edit_config(folder, **changes)
                self.assert_refused(folder, str(folder), *texts)

    def test_windows_hold_for_all_layers_or_none(self) -> None:
        windows = {"use_sliding_window": True, "sliding_window": 8}
        cases = ((windows | {"max_window_layers": 0}, 8), (windows | {"max_window_layers": 3}, 0),
                 (windows | {"max_window_layers": 0, "use_sliding_window": False}, 0),
                 (windows | {"max_window_layers": 1}, None))
        for changes, want in cases:
            for listed in (True, False):  # transformers 5 lists the layers, 4 does not.
                with self.subTest(changes, listed=listed):
                    folder = self.root / f"{changes}{listed}".replace("/", "")[:99]
                    model = make_model(transformers.Qwen2Config(**SIZES, **changes))
                    model.save_pretrained(folder)
                    self.assertIn("layer_types", (folder / "config.json").read_text())
                    if not listed:
                        self.edit_config(folder, layer_types=None)
                    if want is None:
                        self.assert_refused(folder, "config.json: sliding_window: holds for 2 of 3 layers")
                    else:
                        self.assertEqual(self.dump(folder)[0]["sliding_window"], want)

    def test_stored_buffers_and_heads_are_left_out_and_integers_refused(self) -> None:
        model = make_model(VARIANTS["qwen3"][0])  # A tied head.
        folder = self.root / "extra"
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(12),
                 "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        safetensors.torch.save_file(tensors | extra, path, {"format": "pt"})
        _, ours = self.dump(folder)
        self.assert_same_tensors(ours, state(model))
        norm = {"model.norm.weight": tensors["model.norm.weight"].to(torch.int32)}
        safetensors.torch.save_file(tensors | norm, path, {"format": "pt"})
        self.assert_refused(folder, "model.norm.weight: is stored as I32, want F32, F16 or BF16")

    def test_bad_folders_are_refused(self) -> None:
        original = self.root / "original"
        make_model(VARIANTS["qwen2-sharded"][0]).save_pretrained(original, max_shard_size="60KB")
        index_name = "model.safetensors.index.json"
        index = json.loads((original / index_name).read_text())
        weight = "model.norm.weight"
        for shard in ("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "", 3):
            with self.subTest(shard):
                (original / index_name).write_text(json.dumps({"weight_map": index["weight_map"] | {weight: shard}}))
                self.assert_refused(original, index_name, weight)
        (original / index_name).write_text(json.dumps({"weight_map": index["weight_map"] | {"extra": "no.safetensors"}}))
        self.assert_refused(original, "no.safetensors", "can't be opened")
        (original / index_name).unlink()
        self.assert_refused(original, "model.safetensors", index_name)
        (original / "pytorch_model.bin").write_bytes(b"")
        self.assert_refused(original, "pickle", "convert it to safetensors")
        (original / "config.json").unlink()
        self.assert_refused(original, "no config.json")
        (original / "x.gguf").write_bytes(b"")
        self.assert_refused(original, "no config.json", "x.gguf")
        self.assert_refused(original / "x.gguf", "x.gguf", "header")
        self.assert_refused(original / "pytorch_model.bin", "want a .gguf file, or the folder")
        self.assert_refused(self.root / "absent", "absent: no such folder")


class Exporting(FolderTest):
    def test_transformers_loads_what_was_exported(self) -> None:
        for name, (config, _) in VARIANTS.items():
            with self.subTest(name):
                model = make_model(config)
                folder, out = self.root / name, self.root / f"{name}-out"
                model.save_pretrained(folder)
                io_tool.check("export", folder, out, "float32")
                loaded = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
                self.assertIs(type(loaded), type(model))
                self.assertEqual(loaded.dtype, torch.float32)
                self.assert_same_tensors(state(loaded), state(model))
                self.assertTrue(torch.equal(logits(loaded), logits(model)))
                for key in CONFIG_KEYS + ("eos_token_id", "rope_parameters"):
                    if key != "rope_parameters":
                        self.assertEqual(getattr(loaded.config, key), getattr(config, key), key)
                    else:
                        self.assertEqual(loaded.config.rope_parameters, model.config.rope_parameters)
                self.assertEqual(loaded.generation_config.eos_token_id, config.eos_token_id)

    def test_bfloat16_is_rounded_to_nearest_even(self) -> None:
        model = make_model(VARIANTS["qwen2-sharded"][0])
        folder, out = self.root / "in", self.root / "out"
        model.save_pretrained(folder)
        io_tool.check("export", folder, out, "bfloat16")
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        self.assertEqual(loaded.dtype, torch.bfloat16)
        self.assert_same_tensors(state(loaded), state(model.to(torch.bfloat16)))


class Adapters(FolderTest):
    def make_adapter(self, folder: pathlib.Path, **settings: object) -> torch.nn.Module:
        base = make_model(VARIANTS["llama"][0])
        config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", **{"lora_alpha": 6} | settings)
        model = peft.get_peft_model(base, config).eval()
        torch.manual_seed(6)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
        return model

    def test_a_copied_adapter_gives_peft_the_same_logits(self) -> None:
        variants = {
            "all linear": {"target_modules": "all-linear", "lora_dropout": 0.1},
            "rank-stabilised": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
            "one layer": {"target_modules": ["model.layers.1.mlp.up_proj"]},
        }
        for name, settings in variants.items():
            with self.subTest(name):
                folder, out = self.root / name, self.root / f"{name}-copy"
                model = self.make_adapter(folder, **settings)
                io_tool.check("adapter", folder, out)
                base = make_model(VARIANTS["llama"][0])
                loaded = peft.PeftModel.from_pretrained(base, out).eval()
                ours = {k: v for k, v in loaded.state_dict().items() if "lora_" in k}
                theirs = {k: v for k, v in model.state_dict().items() if "lora_" in k}
                self.assertEqual(sorted(ours), sorted(theirs))
                self.assertTrue(all(torch.equal(ours[k], theirs[k]) for k in theirs))
                self.assertTrue(torch.equal(logits(loaded), logits(model)))
                self.assertFalse(torch.equal(logits(model), logits(make_model(VARIANTS["llama"][0]))))
                config = json.loads((out / "adapter_config.json").read_text())
                self.assertEqual((config["r"], config["lora_alpha"]), (4, 6))
                self.assertIsInstance(config["lora_alpha"], int)
                self.assertEqual(config["lora_dropout"], settings.get("lora_dropout", 0.0))
                self.assertEqual(len(config), 16)
                card = (out / "README.md").read_text()
                self.assertIn("library_name: peft\n", card)

    def test_other_kinds_of_adapters_are_refused(self) -> None:
        folder = self.root / "adapter"
        self.make_adapter(folder, target_modules=["q_proj"])
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        for key, value in {"peft_type": "IA3", "use_dora": True, "bias": "all", "modules_to_save": ["lm_head"],
                           "rank_pattern": {"q_proj": 2}, "target_modules": ".*_proj", "r": 0,
                           "lora_dropout": 1.5, "fan_in_fan_out": True}.items():
            with self.subTest(key):
                path.write_text(json.dumps(config | {key: value}))
                done = io_tool.run("adapter", folder, self.root / "out")
                self.assertEqual(done.returncode, 3, done.stderr)
                self.assertIn(f"{path}: {key}: ", done.stderr)
        path.write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        done = io_tool.run("adapter", folder, self.root / "out")
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("adapter_model.bin: is a pickle", done.stderr)
        self.assertFalse((self.root / "out").exists())


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    io_tool.main()
