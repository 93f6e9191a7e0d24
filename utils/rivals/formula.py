"""Formulas over the log-probabilities of streams, such as `M - 0.96 * maximum(M_bad, M)` (Dekoninck et al. 2024).

A formula sum_i lambda_i f_i stands for softmax(sum_i lambda_i f_i / sum_i lambda_i), f_i the log-probabilities of a
stream, the larger of two, or a classifier's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import UserError

Weight = float | Tensor  # of all rows, or weight_B of each
Known = Mapping[str, Tensor]  # log-probabilities, log_p_BV, of each stream by its prefix


class Formula:
    """A weighted sum of terms; made by writing one."""

    def __init__(self, terms: Sequence[tuple[Weight, "Term"]]) -> None:
        self.terms = list(terms)

    def __add__(self, other: "Formula") -> "Formula":
        return Formula([*self.terms, *other.terms])

    def __sub__(self, other: "Formula") -> "Formula":
        return self + other * -1.0

    def __mul__(self, weight: Weight) -> "Formula":
        return Formula([(own * weight, term) for own, term in self.terms])

    __rmul__ = __mul__

    def prefixes(self) -> list[str]:
        """Return the prefixes of all streams, each once."""
        return list(dict.fromkeys(prefix for _, term in self.terms for prefix in term.prefixes()))

    def log_scores(self, known: Known, input_ids_BT: Tensor) -> Tensor:
        """Return sum_i lambda_i f_i / sum_i lambda_i for every token, log_scores_BV.

        Args:
            known: what every stream says of the next token.
            input_ids_BT: the prompt and what was written so far.

        Raises:
            UserError: weights that do not sum to a positive number, or scores of which none is finite.
        """
        first_BV = next(iter(known.values()))
        total_BV, weight_B1 = torch.zeros_like(first_BV), torch.zeros_like(first_BV[:, :1])
        for weight, term in self.terms:
            own_B1 = torch.as_tensor(weight).to(first_BV).reshape(-1, 1).expand(len(first_BV), 1)
            # Where the weight is 0 a term plays no part, even one that is -inf.
            total_BV = total_BV + torch.where(own_B1 == 0, 0, own_B1 * term.log_p(known, input_ids_BT))
            weight_B1 = weight_B1 + own_B1 * term.counts
        if not (weight_B1 > 1e-9).all():
            raise UserError("the weights of the formula must sum to a positive number; choose a smaller strength")
        scores_BV = total_BV / weight_B1
        if scores_BV.isnan().any() or not scores_BV.isfinite().any(dim=1).all():
            raise UserError("the formula leaves no token possible; choose a smaller strength")
        return scores_BV


class Term(ABC):
    """One f_i; `counts` is 1 where its weight is part of the sum that all is divided by."""

    counts = 1.0

    @abstractmethod
    def prefixes(self) -> list[str]:
        """Return the prefixes of the streams it reads."""

    @abstractmethod
    def log_p(self, known: Known, input_ids_BT: Tensor) -> Tensor:
        """Return log_p_BV."""


@dataclass(frozen=True)
class _Stream(Term):
    prefix: str

    def prefixes(self) -> list[str]:
        return [self.prefix]

    def log_p(self, known: Known, input_ids_BT: Tensor) -> Tensor:
        return known[self.prefix]


@dataclass(frozen=True)
class _Larger(Term):
    a: Formula
    b: Formula

    def prefixes(self) -> list[str]:
        return [*self.a.prefixes(), *self.b.prefixes()]

    def log_p(self, known: Known, input_ids_BT: Tensor) -> Tensor:
        return torch.maximum(self.a.log_scores(known, input_ids_BT), self.b.log_scores(known, input_ids_BT))


@dataclass(frozen=True)
class _Classified(Term):
    """log p(attribute | text so far and token) of the most probable tokens; 0 for all others, whom it leaves alone."""

    probability: Callable[[list[str]], Sequence[float]]
    decode: Callable[[list[list[int]]], list[str]]
    n_tokens: int
    counts = 0.0

    def prefixes(self) -> list[str]:
        return [""]

    def log_p(self, known: Known, input_ids_BT: Tensor) -> Tensor:
        base_BV = known[""]
        top_BK = base_BV.topk(min(self.n_tokens, base_BV.shape[1]), dim=1).indices
        rows = [
            [*ids, token]
            for ids, tokens in zip(input_ids_BT.tolist(), top_BK.tolist(), strict=True)
            for token in tokens
        ]
        probabilities = torch.tensor(self.probability(self.decode(rows)), dtype=base_BV.dtype, device=base_BV.device)
        return torch.zeros_like(base_BV).scatter(1, top_BK, probabilities.clamp(min=1e-6).log().view_as(top_BK))


M = Formula([(1.0, _Stream(""))])  # the model as it is


def with_prefix(prefix: str) -> Formula:
    """Return the model after a prefix, which stands in front of every prompt.

    Raises:
        UserError: an empty prefix.
    """
    if not prefix.strip():
        raise UserError("a prefix must not be empty; it is to invite the attribute")
    return Formula([(1.0, _Stream(prefix))])


def maximum(a: Formula, b: Formula) -> Formula:
    """Return the union of two: for each token the larger of the log-probabilities."""
    return Formula([(1.0, _Larger(a, b))])


def classified(
    probability: Callable[[list[str]], Sequence[float]],
    decode: Callable[[list[list[int]]], list[str]],
    n_tokens: int = 50,
) -> Formula:
    """Return a classifier's term: the log-probability of an attribute, asked about the most probable tokens only."""
    return Formula([(1.0, _Classified(probability, decode, n_tokens))])
