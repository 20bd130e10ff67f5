"""`nonfinite: skip`: steps that are skipped change nothing, and a run resumed after some has the bits of the run that
was never stopped: the optimizer counts the steps it made, not those of the run."""
import json
import pathlib
import shutil

from safetensors.numpy import load_file, save_file
from tiny_run import Runner, exact_lines, run_checks, same_adapter

RARE = "\u00e9"  # Two bytes, so two tokens, that no other sample has.


def poison(folder: pathlib.Path) -> None:
    """One of the samples says RARE, whose embedding is NaN: each step that it is in has no loss."""
    lines = (folder / "train.jsonl").read_text().splitlines()
    messages = [{"role": "user", "content": "What is a kluge?"}, {"role": "assistant", "content": f"frob {RARE} grok"}]
    (folder / "train.jsonl").write_text("\n".join([json.dumps({"messages": messages}), *lines[:11]]) + "\n")
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    for token in tokenizer(RARE)["input_ids"]:
        weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def check_skipping(runner: Runner) -> None:
    poison(runner.folder)
    # Twelve samples, each a pack of its own: every third step has the poisoned one.
    settings = {"nonfinite": "skip", "sample_packing": "false", "global_batch_size": 4, "save_total_limit": 0}
    runner.run(2, "whole", settings)
    lines = runner.lines("whole")
    skipped = [line["step"] for line in lines if line.get("skipped")]
    assert len(skipped) == 4 and min(skipped) <= 3, f"skipped: {skipped}, want every third step"
    for at in (3, 9):
        cut = runner.output(f"cut{at}")
        shutil.copytree(runner.output("whole"), cut)
        for later in range(at + 3, 13, 3):
            shutil.rmtree(cut / f"checkpoint-{later}")
        (cut / "summary.json").unlink()
        manifest = json.loads((cut / f"checkpoint-{at}" / "manifest.json").read_text())
        assert manifest["step"] == at and manifest["optimizer_step"] == at - at // 3, manifest
        trained = sum(line["trained_tokens"] for line in lines[:at])
        assert manifest["trained_tokens"] == trained > 0, (manifest["trained_tokens"], trained)
        runner.run(1 if at == 9 else 2, cut.name, settings, "--resume")
        same_adapter(f"resumed at step {at}", runner.adapter("whole"), runner.adapter(cut.name))
        assert exact_lines(runner.lines(cut.name)) == exact_lines(lines), f"resumed at step {at}: metrics differ"
        last = json.loads((cut / "checkpoint-12" / "manifest.json").read_text())
        assert last["trained_tokens"] == sum(line["trained_tokens"] for line in lines)
    print(f"steps {skipped} skipped; resumed at steps 3 and 9: same bits")


if __name__ == "__main__":
    run_checks(check_skipping)
