"""DiffVec: the mean difference of pairs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from utils.rivals.vectors import VectorSteerer


@dataclass(frozen=True)
class DiffVec(VectorSteerer):
    """See `VectorSteerer`."""

    name = "diffvec"

    @classmethod
    def of(cls, differences_MLD: Tensor, about: dict[str, Any]) -> "DiffVec":
        """Return v = the mean of the positive texts' states less that of the negative ones'.

        Args:
            differences_MLD: see `utils.rivals.states.differences`.
            about: what they come from.
        """
        return cls(differences_MLD.double().mean(dim=0).float(), about)
