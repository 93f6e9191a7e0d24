"""The two products of a TopK SAE, with gradients that know which latents a token keeps.

On a CPU, and where few latents are kept, only the encoder's forward product runs over all latents; the decoder's, and
all gradients, run over the k kept ones (`utils.topk_kernels`). Elsewhere all are dense products, as GPUs like them,
still without the gradients nobody needs: that of the input, and the full pre-activations' through TopK and the
concepts' columns, each of which would be another array as large as all latents.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from utils import topk_kernels

_SPARSE_FACTOR = 6  # at fewer latents than so many times k, dense products are as fast


def top_indices(pre_BN: Tensor, k: int) -> Tensor:
    """Return the places of the k largest values of each row, [..., k], int64; on a CPU in ascending order."""
    if pre_BN.device.type == "cpu" and pre_BN.dtype == torch.float32 and not torch.compiler.is_compiling():
        rows_BN = pre_BN.detach().reshape(-1, pre_BN.shape[-1]).contiguous()
        indices = torch.from_numpy(topk_kernels.top_k_rows(rows_BN.numpy(), k)).long()
        return indices.reshape(*pre_BN.shape[:-1], k)
    indices = pre_BN.topk(k, dim=-1, sorted=False).indices
    return indices.sort(dim=-1).values if pre_BN.device.type == "cpu" else indices


def spread(values_BK: Tensor, indices_BK: Tensor, n_latents: int) -> Tensor:
    """Return an array of zeros, [..., N], with the values at their places."""
    zeros_BN = values_BK.new_zeros((*values_BK.shape[:-1], n_latents))
    return zeros_BN.scatter(-1, indices_BK, values_BK)


def encode_top_k(
    z_BD: Tensor,
    pre_bias_D: Tensor,
    weight_ND: Tensor,
    latent_bias_N: Tensor,
    *,
    k: int,
    n_concepts: int = 0,
    n_gated: int = 0,
    concept_z_BD: Tensor | None = None,
    by_size: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest of pre = W (z - b_pre) + b_lat, their places, and the first `n_concepts` columns of pre.

    Args:
        z_BD: normalised activations; they get no gradient.
        pre_bias_D: b_pre.
        weight_ND: W.
        latent_bias_N: b_lat.
        k: values to keep.
        n_concepts: columns that are returned whole, as the concept loss applies before TopK.
        n_gated: columns, from 0 on and at most `n_concepts`, that cannot be among the k.
        concept_z_BD: in place of z_BD for the first `n_concepts` columns.
        by_size: whether the k largest are taken by their absolute values.
        dtype: of the products, else that of the inputs; the results have the inputs'.

    Returns:
        values_BK, indices_BK (int64, no gradient), concept_pre_BC.
    """
    result: tuple[Tensor, Tensor, Tensor] = _EncodeTopK.apply(
        z_BD, pre_bias_D, weight_ND, latent_bias_N, k, n_concepts, n_gated, concept_z_BD, by_size, dtype or z_BD.dtype
    )
    return result


def decode_top_k(values_BK: Tensor, indices_BK: Tensor, weight_DN: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return W f, [B, D], where f holds the values at their places and zeros elsewhere.

    Args:
        values_BK: of the kept latents.
        indices_BK: their places, none twice in a row; on a CPU in ascending order.
        weight_DN: W; fastest where its columns are contiguous.
        dtype: of the products, else that of the values; the result has the values'.
    """
    result: Tensor = _DecodeTopK.apply(values_BK, indices_BK, weight_DN, dtype or values_BK.dtype)
    return result


def _sparse(tensor: Tensor, k: int, n_latents: int) -> bool:
    on_cpu = tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)
    return on_cpu and k * _SPARSE_FACTOR <= n_latents and not torch.compiler.is_compiling()


class _EncodeTopK(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_BD: Tensor,
        pre_bias_D: Tensor,
        weight_ND: Tensor,
        latent_bias_N: Tensor,
        k: int,
        n_concepts: int,
        n_gated: int,
        concept_z_BD: Tensor | None,
        by_size: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred_BD = (z_BD - pre_bias_D).to(dtype)
        pre_BN = torch.addmm(latent_bias_N.to(dtype), centred_BD, weight_ND.to(dtype).T)
        concept_centred_BD = None
        if concept_z_BD is not None:
            concept_centred_BD = (concept_z_BD - pre_bias_D).to(dtype)
            pre_BN[:, :n_concepts] = torch.addmm(
                latent_bias_N[:n_concepts].to(dtype), concept_centred_BD, weight_ND[:n_concepts].to(dtype).T
            )
        concept_pre_BC = pre_BN[:, :n_concepts].to(z_BD.dtype, copy=True)
        if n_gated:
            pre_BN[:, :n_gated] = -torch.inf
        indices_BK = top_indices(pre_BN.abs() if by_size else pre_BN, k)
        values_BK = pre_BN.gather(1, indices_BK)
        ctx.save_for_backward(centred_BD, weight_ND, indices_BK, concept_centred_BD)
        ctx.mark_non_differentiable(indices_BK)
        return values_BK.to(z_BD.dtype), indices_BK, concept_pre_BC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BK: Tensor, _: Tensor, grad_BC: Tensor) -> tuple[Tensor | None, ...]:
        centred_BD, weight_ND, indices_BK, concept_centred_BD = ctx.saved_tensors
        n_latents, n_concepts = len(weight_ND), grad_BC.shape[1]
        # Of the kept latents those of the concepts, where they see other inputs than the rest.
        own_BC = grad_BC
        if concept_centred_BD is not None:
            places_BK = indices_BK.clamp(max=n_concepts)
            own_BC = grad_BC + spread(grad_BK * (indices_BK < n_concepts), places_BK, n_concepts + 1)[:, :n_concepts]
        if _sparse(centred_BD, indices_BK.shape[1], n_latents):
            grad_ND, grad_N = _transposed_product(grad_BK, indices_BK, centred_BD, n_latents)
            grad_ND[:n_concepts] += grad_BC.T @ centred_BD
            grad_N[:n_concepts] += grad_BC.sum(0)
        else:
            grad_BN = spread(grad_BK, indices_BK, n_latents)
            grad_BN[:, :n_concepts] += grad_BC
            grad_N = grad_BN.sum(0)
            grad_ND = (grad_BN.to(centred_BD.dtype).T @ centred_BD).to(weight_ND.dtype)
        if concept_centred_BD is not None:
            grad_ND[:n_concepts] = (own_BC.to(centred_BD.dtype).T @ concept_centred_BD).to(weight_ND.dtype)
        return None, -(grad_N @ weight_ND), grad_ND, grad_N, *[None] * 6


class _DecodeTopK(Function):
    @staticmethod
    def forward(ctx: Any, values_BK: Tensor, indices_BK: Tensor, weight_DN: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(values_BK, indices_BK, weight_DN)
        ctx.dtype = dtype
        if dtype == values_BK.dtype and _sparse(values_BK, *_sizes(indices_BK, weight_DN)):
            arrays = (values_BK, indices_BK.int(), weight_DN.T)
            return torch.from_numpy(topk_kernels.weighted_rows(*(_array(tensor) for tensor in arrays)))
        latents_BN = spread(values_BK.to(dtype), indices_BK, weight_DN.shape[1])
        return (latents_BN @ weight_DN.to(dtype).T).to(values_BK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_BK, indices_BK, weight_DN = ctx.saved_tensors
        if ctx.dtype == values_BK.dtype and _sparse(values_BK, *_sizes(indices_BK, weight_DN)):
            arrays = (grad_BD, indices_BK.int(), weight_DN.T)
            grad_BK = torch.from_numpy(topk_kernels.chosen_dots(*(_array(tensor) for tensor in arrays)))
            grad_ND, _ = _transposed_product(values_BK, indices_BK, grad_BD, weight_DN.shape[1])
            return grad_BK, None, grad_ND.T, None
        grad_BD = grad_BD.to(ctx.dtype)
        latents_BN = spread(values_BK.to(ctx.dtype), indices_BK, weight_DN.shape[1])
        grad_ND = latents_BN.T @ grad_BD
        grad_BK = (grad_BD @ weight_DN.to(ctx.dtype)).gather(1, indices_BK)
        return grad_BK.to(values_BK.dtype), None, grad_ND.to(weight_DN.dtype).T, None


def _sizes(indices_BK: Tensor, weight_DN: Tensor) -> tuple[int, int]:
    return indices_BK.shape[1], weight_DN.shape[1]


def _array(tensor: Tensor) -> Any:
    return tensor.contiguous().numpy()


def _transposed_product(values_BK: Tensor, indices_BK: Tensor, x_BD: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    out_ND, sum_N = topk_kernels.transposed_product(_array(values_BK), _array(indices_BK.int()), _array(x_BD), n_rows)
    return torch.from_numpy(out_ND), torch.from_numpy(sum_N)
