"""8-bit optimizer states as bitsandbytes has saved them over time, made into what its optimizers step now.

    optimizer.load_state_dict(upgraded(torch.load("optimizer.pt")))   # the backend does this by itself

Now a moment has codes, a code table and one scale (absmax) for each 256 elements. Before 0.44 a block was of 2048
elements, and with block_wise=False the whole tensor had one scale, max1 or max2. AdEMAMix keeps two averages in state1,
and the scales of both in the rows of absmax1; its CUDA and Triton kernels write the second row too early where a part
of a block is left over.
"""

import torch

BLOCK = 256
OLD_BLOCK = 2048
# In newer state dicts the tensors of a state are in a dict of this name; in older ones they lie beside "step".
WRAPPER = "__bnb_optimizer_quant_state__"


def upgraded(state_dict: dict) -> dict:
    """The state dict with every 8-bit moment in blocks of 256: decoded, and encoded again with its own table.

    States that are so already are taken as they are; nothing is changed in place.
    Errors: ValueError - a state with scales that fit none of the layouts, named by its parameter.
    """
    return {**state_dict, "state": {key: _upgraded_state(value, f"optimizer state of parameter {key}")
                                    for key, value in state_dict["state"].items()}}


def _upgraded_state(state, where: str):
    if not isinstance(state, dict):
        return state
    flat = {**state, **state.get(WRAPPER, {})}
    flat.pop(WRAPPER, None)
    changed = {}
    for i in "12":
        codes = flat.get(f"state{i}")
        if isinstance(codes, torch.Tensor) and codes.dtype == torch.uint8:
            changed.update(_upgraded_moment(flat, i, where))
    if not changed:
        return state
    for name in ("max1", "max2", "new_max1", "new_max2"):
        flat.pop(name, None)
    return flat | changed


def _upgraded_moment(flat: dict, i: str, where: str) -> dict:
    """What is to be different of moment i; nothing where it has the layout of now."""
    codes, table = flat[f"state{i}"], flat.get(f"qmap{i}")
    scales = flat.get(f"absmax{i}", flat.get(f"max{i}"))
    if table is None or scales is None:
        raise ValueError(f"{where}: state{i} is 8-bit codes, and there is no "
                         f"{f'qmap{i}' if table is None else f'absmax{i} or max{i}'} to decode them with")
    rows = scales.shape[0] if scales.dim() == 2 else 1
    elems = codes.numel() // rows
    if f"absmax{i}" not in flat:
        block = max(elems, 1)
    else:
        block = _block_of(scales.numel() // rows, elems, f"{where}: absmax{i}")
    if block == BLOCK:
        return {f"absmax{i}": _in_rows(scales)} if _is_early(codes, scales) else {}
    values = [torch.ops.bitshard.dequantize_blockwise(part, scale, table, block, torch.float32)
              for part, scale in zip(codes.reshape(rows, elems), scales.reshape(rows, -1))]
    encoded = [torch.ops.bitshard.quantize_blockwise(part, table, BLOCK) for part in values]
    new_scales = torch.stack([absmax for _, absmax in encoded])
    return {f"state{i}": torch.stack([part for part, _ in encoded]).reshape(codes.shape),
            f"absmax{i}": new_scales if scales.dim() == 2 else new_scales[0]}


def _blocks(elems: int, block: int) -> int:
    return (elems + block - 1) // block


def _block_of(count: int, elems: int, what: str) -> int:
    for block in (BLOCK, OLD_BLOCK):
        if count == _blocks(elems, block):
            return block
    raise ValueError(f"{what} has {count} scales for {elems} elements; want {_blocks(elems, BLOCK)} (blocks of {BLOCK}) "
                     f"or {_blocks(elems, OLD_BLOCK)} (blocks of {OLD_BLOCK}, bitsandbytes before 0.44): was it saved "
                     "for another parameter, or by a version that this bitshard doesn't know?")


def _is_early(codes: torch.Tensor, scales: torch.Tensor) -> bool:
    """Whether AdEMAMix' second row begins at entry floor(n / 256) of both rows together, as CUDA and Triton write it.

    The last entry is then never written and stays 0, though its block, with more than one code, is not one of zeros.
    (Of a last block of one element that can't be told: it is taken to be one of zeros.)
    """
    if scales.dim() != 2 or scales.shape[0] != 2:
        return False
    elems = codes.numel() // 2
    last = codes.reshape(2, elems)[1, (elems - 1) // BLOCK * BLOCK:]
    return elems % BLOCK != 0 and scales[1, -1].item() == 0 and last.unique().numel() > 1


def _in_rows(scales: torch.Tensor) -> torch.Tensor:
    """Of both averages, by rows. The last scale of the first and the first of the second were written to one place."""
    flat, count = scales.flatten(), scales.shape[1]
    return torch.stack([flat[:count], flat[count - 1:-1]])
