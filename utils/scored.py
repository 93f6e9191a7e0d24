"""What FMS keeps of every sample it scored: enough to draw the samples anew and say how far the score may be off."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 1_000
_DRAWS_AT_ONCE = 50


@dataclass(frozen=True)
class Scored:
    """Samples and how the latents left after 0, 1, ... removals, and the cuts of the tree, classify them.

    Attributes:
        rows_B: which of all samples they are.
        weight_B: what each counts.
        correct_PB: whether the best latent left after p removals is right.
        deep_cuts_B: at how many of the cuts that the global term averages the tree is right.
        n_cuts: how many these are; 0 where the root separates.
    """

    rows_B: NDArray[np.int64]
    weight_B: NDArray[np.int64]
    correct_PB: NDArray[np.bool_]
    deep_cuts_B: NDArray[np.int64]
    n_cuts: int

    def accs(self) -> list[float]:
        """Return accs_0, accs_1, ...: the weighted shares of samples classified correctly."""
        total = int(self.weight_B.sum())
        return [count / total for count in (self.correct_PB @ self.weight_B).tolist()]


def interval(halves: Sequence[Scored], n_samples: int, p: int, level: float, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of FMS@p, as a mean over the halves.

    The fitted trees stay; the samples they are scored on are drawn anew, `N_RESAMPLES` times, the same ones for all
    halves. So the interval tells how the score varies with the samples, not with the choice of latents.

    Args:
        halves: what was scored; one, but in held-out mode.
        n_samples: of all of them together.
        p: of FMS@p.
        level: such as 0.95.
        seed: of the draws.
    """
    random = np.random.default_rng([seed, 3])
    scores: list[NDArray] = []
    for start in range(0, N_RESAMPLES, _DRAWS_AT_ONCE):
        n_draws = min(_DRAWS_AT_ONCE, N_RESAMPLES - start)
        drawn = random.integers(0, n_samples, (n_draws, n_samples)) + n_samples * np.arange(n_draws)[:, None]
        drawn_RB = np.bincount(drawn.ravel(), minlength=n_draws * n_samples).reshape(n_draws, n_samples)
        scores.append(np.mean([_scores(half, drawn_RB[:, half.rows_B], p) for half in halves], axis=0))
    # A draw may hold nothing of a small half.
    low, high = np.nanquantile(np.concatenate(scores), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scores(half: Scored, drawn_RB: NDArray[np.int64], p: int) -> NDArray[np.float64]:
    weights_RB = (drawn_RB * half.weight_B).astype(np.float64)
    with np.errstate(invalid="ignore"):
        shares_RB = weights_RB / weights_RB.sum(axis=1, keepdims=True)
    accs_0, accs_p = shares_RB @ half.correct_PB[0], shares_RB @ half.correct_PB[p]
    global_ = 1 - (shares_RB @ half.deep_cuts_B / half.n_cuts - accs_0) if half.n_cuts else 1.0
    return accs_0 * (2 * (accs_0 - accs_p) + global_) / 2
