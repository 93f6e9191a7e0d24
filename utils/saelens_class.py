"""A SAELens class for TopK-sigmoid SAEs, so that SAELens loads what `to_saelens` writes. Needs sae-lens."""

from typing import Any


def register() -> type[Any]:
    """Make SAELens know the architecture `topk-sigmoid`; return its class. Calling it again does nothing.

    Raises:
        ImportError: sae-lens is not installed (`poetry install --with interop`).
    """
    import torch
    from sae_lens.registry import SAE_CLASS_REGISTRY, register_sae_class
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    if "topk-sigmoid" in SAE_CLASS_REGISTRY:
        return SAE_CLASS_REGISTRY["topk-sigmoid"][0]

    class TopKSigmoidSAEConfig(TopKSAEConfig):
        """As a TopK SAE's; the kept latents go through a sigmoid instead of a ReLU."""

        @classmethod
        def architecture(cls) -> str:
            return "topk-sigmoid"

    class TopKSigmoid(torch.nn.Module):
        """Keeps the k largest pre-activations of a token, as their sigmoid; all others are 0."""

        def __init__(self, k: int) -> None:
            super().__init__()
            self.k = k

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values, indices = x.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(x).scatter(-1, indices, torch.sigmoid(values))

    class TopKSigmoidSAE(TopKSAE):
        """The guided SAE of this project, as SAELens runs it."""

        def get_activation_fn(self) -> Any:
            return TopKSigmoid(self.cfg.k)

    register_sae_class("topk-sigmoid", TopKSigmoidSAE, TopKSigmoidSAEConfig)
    return TopKSigmoidSAE
