"""ICV, in-context vectors (Liu et al. 2024): the main direction in which pairs differ, plus their mean difference."""

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from utils.errors import UserError
from utils.rivals.vectors import VectorSteerer


@dataclass(frozen=True)
class ICV(VectorSteerer):
    """See `VectorSteerer`; the strength is its lambda, about 0.1."""

    name = "icv"

    @classmethod
    def of(cls, differences_MLD: Tensor, about: dict[str, Any]) -> "ICV":
        """Return v = PC_1 + mean of the differences, with all L blocks as one vector.

        The sign of a principal component means nothing; it is taken such that it points along the mean.

        Args:
            differences_MLD: see `utils.rivals.states.differences`.
            about: what they come from.

        Raises:
            UserError: fewer than two pairs, which have no main direction.
        """
        n_pairs, *shape = differences_MLD.shape
        if n_pairs < 2:
            raise UserError("icv needs at least 2 pairs")
        flat_MK = differences_MLD.flatten(start_dim=1).double().numpy()
        pca = PCA(n_components=1, svd_solver="full").fit(flat_MK)
        component_K, mean_K = pca.components_[0], pca.mean_
        if component_K @ mean_K < 0:
            component_K = -component_K
        return cls(torch.from_numpy(component_K + mean_K).view(*shape).float(), about)
