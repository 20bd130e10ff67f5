"""What a run leaves: every file and every key of its summary; nothing of an earlier run in it or lost; the progress bar only
where somebody is watching."""
import json
import os
import pty
import shutil
import subprocess

from tiny_run import HUNG, Runner, run_checks, same_adapter, wait_for

FILES = {"adapter", "answers.json", "config.yaml", "latest", "metrics.jsonl", "summary.json", "trainer_state.json"}
RESULTS = ("summary.json", "answers.json", "trainer_state.json", "adapter", "latest")


def check_files(runner: Runner) -> None:
    runner.run(2, "run")
    names = {path.name for path in runner.output("run").iterdir() if not path.name.startswith(("checkpoint-", "."))}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1 and names - events == FILES, names
    assert {path.name for path in (runner.output("run") / "adapter").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors"}
    summary = json.loads((runner.output("run") / "summary.json").read_text())
    assert summary["world_size"] == 2 and summary["steps"] == 12, summary
    assert len(summary["config_hash"]) == 16 and int(summary["config_hash"], 16) > 0, summary
    assert [part.isdigit() for part in summary["version"].split(".")] == [True] * 3, summary
    for key in ("heldout_loss_before", "heldout_loss_after", "tokens_per_second", "planned_peak_rss_bytes",
                "peak_rss_bytes"):
        assert summary[key] > 0, (key, summary)
    assert summary["heldout_loss_after"] < summary["heldout_loss_before"] < 10, summary
    assert 50 << 20 < summary["peak_rss_bytes"] < 2 << 30, summary
    # What nothing ever sets would be a promise.
    assert "interrupted" not in summary and "heldout_loss_unquantised" not in summary, summary
    for line in runner.lines("run"):
        assert {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "step_seconds", "phase_seconds",
                "bytes_sent"} <= line.keys(), line
        phases = line["phase_seconds"]
        assert phases.keys() == {"data", "forward_backward", "exposed_communication", "optimizer"}, line
        assert min(phases["forward_backward"], phases["optimizer"]) > 0 <= min(phases.values()), line
        # What was not hidden behind backward is part of both sides of it.
        assert sum(phases.values()) - phases["exposed_communication"] <= line["step_seconds"], line
        assert abs(line["tokens"] / line["step_seconds"] / line["tokens_per_second"] - 1) < 1e-9, line
        assert line["bytes_sent"] > 0, line
    answers = json.loads((runner.output("run") / "answers.json").read_text())
    assert len(answers) == 1 and answers[0].keys() == {"prompt", "before", "after"}, answers
    print("files and summary: all there")


def check_no_step_left(runner: Runner) -> None:
    """A run that was killed after its last checkpoint makes up for its results: what its steps took is what their lines
    say, not nothing."""
    folder = runner.output("run")
    before = json.loads((folder / "summary.json").read_text())
    adapter, lines = runner.adapter("run"), runner.lines("run")
    for name in RESULTS[:3]:
        (folder / name).unlink()
    shutil.rmtree(folder / "adapter")
    assert "12 of 12 steps done" in runner.run(1, "run", {"resume_from_checkpoint": "auto"})
    after = json.loads((folder / "summary.json").read_text())
    for key in ("steps", "total_tokens", "heldout_loss_before", "heldout_loss_after", "train_loss", "config_hash"):
        assert after[key] == before[key], (key, before, after)
    for key, value in (("seconds", sum(line["step_seconds"] for line in lines)),
                       ("tokens_per_second", before["total_tokens"] / before["seconds"]),
                       ("bytes_sent_per_step", lines[-1]["bytes_sent"])):
        assert abs(after[key] / value - 1) < 1e-9, (key, value, after)
    assert runner.lines("run") == lines
    same_adapter("made up for", adapter, runner.adapter("run"))
    print("results that were never written are made up for")


def check_fresh_start(runner: Runner) -> None:
    """A new run in a folder that holds another's: all of that is moved aside, whole. The new one ends early, by numbers
    that are not finite, and can't be taken for complete."""
    folder, aside = runner.output("run"), runner.output("run") / "earlier-1"
    (folder / "adapter" / "mine.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text = runner.run(2, "run", {"learning_rate": 100, "weight_decay": 100, "lr_scheduler": "constant",
                                 "warmup_steps": 0}, expect=7)
    assert text.count("warning: output_dir: an earlier run was in it, which is now in") == 1, text
    left = [name for name in RESULTS if (folder / name).exists()]
    assert not left, f"of the earlier run: {left}"
    kept = {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()}
    here = {path: data for path, data in before.items() if str(path) in (".lock", "notes.txt")}
    assert kept | here == before and (folder / "notes.txt").exists(), kept.keys() ^ before.keys()
    assert "learning_rate: 100" in (folder / "config.yaml").read_text()
    runner.run(2, "run", {"max_steps": 3, "resume_from_checkpoint": aside / "checkpoint-6"}, expect=2)
    print("a fresh start moves the earlier run aside")


def check_resume_after_fresh_start(runner: Runner) -> None:
    """The new run is killed when it has saved fewer steps than the one before it: --resume goes on with the new one."""
    runner.run(1, "twice")
    for settings in ({}, {"learning_rate": 2e-2}):  # As before, and another run.
        job = runner.start(1, "twice", {**settings, **runner.long_evaluation(400), "eval_steps": 1})
        wait_for(lambda: job.poll() is not None or (runner.output("twice") / "checkpoint-3").exists() and
                 not (runner.output("twice") / "checkpoint-12").exists(), HUNG, "three steps")
        runner.kill(job, "twice")
        assert not (runner.output("twice") / "checkpoint-12").exists(), "the run was quicker"
        runner.run(1, "twice", {**settings, **runner.long_evaluation(400)}, "--resume")
        assert [line["step"] for line in runner.lines("twice")] == list(range(1, 13))
    assert {path.name for path in runner.output("twice").glob("earlier-*")} == {"earlier-1", "earlier-2"}
    print("--resume goes on with the run that was started last")


def check_closed(runner: Runner) -> None:
    """As a daemon may start it: nothing that is said gets into a file that took the number of standard output."""
    settings = [f"output_dir={runner.output('closed')}", "max_steps=2"]
    words = [runner.binary, "train", "--config", runner.config, *(w for s in settings for w in ("--set", s))]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], timeout=HUNG)
    assert done.returncode == 0, done.returncode
    assert [line["step"] for line in runner.lines("closed")] == [1, 2]
    print("closed standard output: nothing is written into the run's files")


def check_reports(runner: Runner) -> None:
    """A run that reports elsewhere leaves no metrics of the one before it, and says nothing that rests on them."""
    folder = runner.output("reports")
    runner.run(1, "reports", {"max_steps": 6})
    assert (folder / "metrics.jsonl").exists() and (folder / "trainer_state.json").exists()
    runner.run(1, "reports", {"max_steps": 6, "report_to": "[csv]", "resume_from_checkpoint": folder / "checkpoint-3"})
    assert not (folder / "trainer_state.json").exists()
    runner.run(1, "reports", {"max_steps": 3, "report_to": "[csv]"})
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4
    runner.run(1, "reports", {"max_steps": 3, "report_to": "[]"})
    for name in ("metrics.jsonl", "metrics.csv", "trainer_state.json"):
        assert not (folder / name).exists(), f"{name} is an earlier run's"
    print("metrics of an earlier run are not taken for this one's")


def check_terminal(runner: Runner) -> None:
    """mpirun gives every rank a pseudo terminal; launch/mpirun.sh says whether its own output is one."""
    for watched in (True, False):
        ours, theirs = pty.openpty()
        job = subprocess.Popen(runner.command(2, f"watched-{watched}", {"max_steps": 3}),
                               stdout=theirs if watched else subprocess.PIPE, stderr=subprocess.STDOUT)
        os.close(theirs)
        printed = b""
        while True:
            try:
                piece = os.read(ours, 4096) if watched else job.stdout.read()
            except OSError:  # The last one closed it.
                break
            printed += piece
            if not piece or not watched:
                break
        assert job.wait(HUNG) == 0, printed
        os.close(ours)
        bar = b"\rstep 3/3 [====" in printed
        assert bar == watched and (b"\x1b[K" in printed) == watched, printed
    print("the progress bar is drawn on a terminal and nowhere else")


if __name__ == "__main__":
    run_checks(check_files, check_no_step_left, check_fresh_start, check_resume_after_fresh_start, check_reports,
               check_closed, check_terminal)
