"""Trains parameters with an optimizer of bitsandbytes, from the start or from a state dict.

    python state_dict_peer.py JOB.pt OUT.pt      # with or without bitshard's backend installed

state_dicts_test.py runs this in a process without bitshard, so that state dicts can be exchanged with one.
"""

import os
import sys

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles its torch code otherwise, for minutes

import bitsandbytes as bnb  # noqa: E402
import torch  # noqa: E402

SHAPES = ((4146, 2), (30,))  # 8-bit state with a part of a block left over, and 32-bit state


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(name: str, options: dict, steps: range, start: dict | None = None) -> dict:
    """Parameters and state dict after the steps; the gradients depend on the step alone. `start`: such a result."""
    values = start["parameters"] if start else [normal(*shape) for shape in SHAPES]
    parameters = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = getattr(bnb.optim, name)(parameters, **options)
    if start:
        optimizer.load_state_dict(start["state_dict"])
    for step in steps:
        for i, p in enumerate(parameters):
            p.grad = normal(*p.shape, seed=100 * step + i)
        optimizer.step()
    return {"parameters": [p.detach() for p in parameters], "state_dict": optimizer.state_dict()}


if __name__ == "__main__":
    torch.save([train(**job) for job in torch.load(sys.argv[1], weights_only=False)], sys.argv[2])
