"""comm.reduction: fast sends one sum a rank. The sums differ from the ordered ones by their bound, a checkpoint of one
is not gone on with as the other, and the bits of a world size are its own."""
import json

from tiny_run import Runner, exact_lines, one_error, run_checks, same_adapter

FAST = {"comm.reduction": "fast"}


def gradient_norms(runner: Runner, name: str) -> list[float]:
    return [line["grad_norm"] for line in runner.lines(name)]


def check_close_to_ordered(runner: Runner) -> None:
    """Six micro-batches. The elements of the two sums differ by at most 2^-24 (3 + 2 + 1) times the sum of magnitudes
    (FastReductionBound), so the norms of the first step's gradient by that times the magnitudes' norm, which is less
    than ten times the sum's here. Later an element whose gradient is smaller than that may have been stepped the other
    way, by two learning rates at most: the loss does not depend on it more than its gradient says."""
    runner.run(1, "ordered")
    ordered = runner.lines("ordered")
    for ranks in (1, 2, 4):
        name = f"fast_{ranks}"
        runner.run(ranks, name, FAST)
        lines = runner.lines(name)
        assert lines[0]["loss"] == ordered[0]["loss"], (lines[0], ordered[0])
        norms = gradient_norms(runner, name)[0], gradient_norms(runner, "ordered")[0]
        print(f"{ranks} ranks: first norms {norms}, loss {lines[0]['loss']:.3f} to {lines[-1]['loss']:.3f}")
        assert abs(norms[0] / norms[1] - 1) < 10 * 6 * 2**-24, norms
        assert lines[-1]["loss"] < lines[0]["loss"] - 0.05, "the loss does not fall"
        for ours, theirs in zip(lines, ordered, strict=True):
            assert abs(ours["loss"] / theirs["loss"] - 1) < 1e-3, (ours, theirs)
    same_adapter("fast on one rank", runner.adapter("ordered"), runner.adapter("fast_1"))


def check_own_bits(runner: Runner) -> None:
    """Two ranks have three micro-batches each: (0 + 1) + 2 and (3 + 4) + 5 is not the tree's order."""
    assert exact_lines(runner.lines("fast_2")) != exact_lines(runner.lines("ordered"))
    runner.run(2, "fast_2_again", FAST)
    same_adapter("fast on two ranks, again", runner.adapter("fast_2"), runner.adapter("fast_2_again"))
    resumed = {**FAST, "resume_from_checkpoint": runner.output("fast_2") / "checkpoint-6"}
    runner.run(2, "fast_2_resumed", resumed)
    same_adapter("fast on two ranks, resumed", runner.adapter("fast_2"), runner.adapter("fast_2_resumed"))
    runner.run(3, "fast_2_to_3", resumed)  # Other bits, but a run that goes on.
    assert [line["step"] for line in runner.lines("fast_2_to_3")] == list(range(7, 13))


def check_said(runner: Runner) -> None:
    """The plan knows what is sent, a run says that its bits depend on the ranks, and the two don't mix."""
    sent = {}
    for name, settings in (("plain", {}), ("planned", FAST)):
        text = runner.run(2, name, {**settings, "max_steps": 1, "save_steps": 0})
        summary = json.loads((runner.output(name) / "summary.json").read_text())
        assert summary["bytes_sent_per_step"] == summary["planned_bytes_sent_per_step"], summary
        sent[name] = summary["bytes_sent_per_step"]
        assert ("bits depend on the number of ranks" in text) == (name == "planned"), text
        assert ("gradients are sent as up to 2 partial sums" in text) == (name == "plain"), text
    assert sent["planned"] < 0.8 * sent["plain"], sent
    for settings, was in (({}, "fast"), (FAST, "ordered")):
        start = "fast_2" if was == "fast" else "ordered"
        text = runner.run(2, f"from_{was}", {
            **settings, "resume_from_checkpoint": runner.output(start) / "checkpoint-6"}, expect=2)
        one_error(text, "made with another configuration", f"comm.reduction: {was}, not ")


if __name__ == "__main__":
    run_checks(check_close_to_ordered, check_own_bits, check_said)
