"""Stands in for the grouped_gemm package with PyTorch's own grouped matrix product."""

import torch

_last: dict[tuple[int, ...], torch.Tensor] = {}  # CUDA graphs cannot copy sizes from the host


class ops:  # noqa: N801 - the package's own name
    """The one operation that Megatron-Core calls."""

    @staticmethod
    def gmm(
        a: torch.Tensor, b: torch.Tensor, batch_sizes: torch.Tensor, trans_b: bool = False
    ) -> torch.Tensor:
        """Multiply the rows of each group [rows, k] with its own matrix [groups, k, n]."""
        if batch_sizes.is_cuda:
            offsets = torch.cumsum(batch_sizes, 0).to(torch.int32)
        else:
            key = tuple(batch_sizes.tolist())
            if key not in _last:
                _last.clear()
                _last[key] = torch.cumsum(batch_sizes.to(a.device), 0).to(torch.int32)
            offsets = _last[key]
        return torch._grouped_mm(a, b.transpose(-2, -1) if trans_b else b, offs=offsets)
