"""The numbers of `Reading` from a matrix of attention, with torch's operators."""

from __future__ import annotations

from torch import Tensor

from chatterbox_engine.types import Reading

NEAR = 4


def reading(attention: Tensor, frame: int) -> Reading:
    """attention: [text], averaged over the heads; frame: the step, from 0 for the prefill."""
    attention = attention.double()
    place = int(attention.argmax())
    low, high = max(0, place - NEAR), place + NEAR + 1
    near = attention[low:high]
    moments = near * (low + near.new_ones(len(near)).cumsum(0) - 1)
    seen = attention.clone()
    seen[frame + 1 :] = 0
    earlier = float(seen[:-5].max()) if len(seen) > 5 else 0.0
    ends = [float(seen[at]) if at >= -len(seen) else 0.0 for at in (-3, -2, -1)]
    return Reading(
        place,
        float(moments.sum() / near.sum()),
        float(attention.sum()),
        float(attention[place]),
        int(seen.argmax()),
        earlier,
        *ends,
    )


def largest_difference(got: Reading, expected: Reading) -> float:
    return max(abs(ours - exact) for ours, exact in zip(got, expected, strict=True))
