"""Every step's learning rate against transformers' schedulers."""
import argparse
import subprocess

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", required=True)
    args = parser.parse_args()
    for kind, theirs, extra, ratio in (("constant", "constant_with_warmup", {}, 0.0), ("linear", "linear", {}, 0.0),
                                       ("cosine", "cosine", {}, 0.0),
                                       ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}, 0.1)):
        for warmup, total in ((0, 10), (3, 10), (10, 10), (7, 100)):
            ours = [float(x) for x in subprocess.run([args.tool, kind, "2e-4", str(warmup), str(total), str(ratio)],
                                                     capture_output=True, text=True, check=True).stdout.split()]
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
            scheduler = transformers.get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total,
                                                   scheduler_specific_kwargs=extra)
            for step, rate in enumerate(ours, 1):
                want = scheduler.get_last_lr()[0]
                assert abs(rate - want) <= 1e-15 + 1e-12 * want, f"{theirs} {warmup}/{total} step {step}: {rate}, {want}"
                optimizer.step()
                scheduler.step()
    print("constant, linear, cosine: equal to transformers at every step")


if __name__ == "__main__":
    main()
