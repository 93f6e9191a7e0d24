"""The learning rate of a step."""

import math

LR_DECAYS = ("none", "linear", "cosine")


def learning_rate(step: int, n_steps: int, *, peak: float, warmup_steps: int = 0, decay: str = "none") -> float:
    """Return the learning rate of step 0, 1, ..., n_steps - 1.

    It rises linearly over the warmup, reaching `peak` at its end, and then stays (`none`) or falls to nearly 0 at the
    last step, in a line (`linear`) or along half a cosine (`cosine`).
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if decay == "none":
        return peak
    left = (n_steps - step) / max(n_steps - warmup_steps, 1)
    return peak * (left if decay == "linear" else (1 - math.cos(math.pi * left)) / 2)
