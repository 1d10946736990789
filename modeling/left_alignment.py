"""Left-padded rows are shifted to position 0 inside the model, and its outputs shifted back."""

import torch

from .position_cache import NewTokens


def wrapped(index: torch.Tensor, length: int) -> torch.Tensor:
    """`index % length` for -length <= index < 2 length: ONNX has no remainder by a length that it does not know."""
    index = torch.where(index < 0, index + length, index)
    return torch.where(index < length, index, index - length)


class LeftAlignment:
    """
    Rolls the tokens of each row so that its first valid one comes first, and back.

    Blocks, synthesised rows and position embeddings are then those of the unpadded row. Holes inside a row stay holes.
    A row without any valid token counts as wholly valid: its outputs mean nothing, but they are finite.

    Args:
        attention_mask: (batch, end), true or non-zero at valid tokens; `None` if all are valid.
        tokens: (batch, length, ...), of which the shape is read.
        past_length: how many tokens a cache holds of each row; a tensor where it counts them itself.
        end: number of positions that the tokens may look at.

    Attributes:
        mask: (batch, end) boolean mask of the aligned rows, true in column 0; `None` if all tokens are valid.
        new_tokens: where the tokens stand in the aligned rows.
    """

    def __init__(
        self,
        attention_mask: torch.Tensor | None,
        tokens: torch.Tensor,
        past_length: int | torch.Tensor,
        end: int,
    ):
        length = tokens.shape[1]
        start: int | None = past_length if isinstance(past_length, int) else None
        column = torch.arange(length, device=tokens.device)
        positions = (column + past_length)[None]
        self.mask: torch.Tensor | None = None
        self._forth: torch.Tensor | None = None
        self._back: torch.Tensor | None = None
        self._back_all: torch.Tensor | None = None
        mask = None if attention_mask is None else attention_mask.bool()
        # what the data allows to leave out is left out, but a traced graph must serve every batch
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if mask is not None and (traced or not mask.all()):
            self.mask = mask | ~mask.any(-1, keepdim=True)
        if self.mask is not None and (traced or not self.mask[:, 0].all()):
            first = self.mask.int().argmax(-1, keepdim=True)  # (B, 1): argmax takes the first of equals
            every = torch.arange(end, device=tokens.device)
            self.mask = self._roll(self.mask, wrapped(every + first, end), 1)
            self._back_all = wrapped(every - first, end)  # (B, end)
            skipped = (first - past_length).clamp(min=0, max=length)
            self._forth = wrapped(column + skipped, length)  # (B, L)
            self._back = wrapped(column - skipped, length)
            if start != 0:
                positions, start = column + (past_length - first).clamp(min=0), None
        new_mask = None if self.mask is None else self.mask.gather(1, positions.expand(self.mask.shape[0], -1))
        self.new_tokens = NewTokens(positions, start, new_mask, end)

    def align(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """(batch, length, ...) -> the same, first valid tokens first. One row is read as shared by all."""
        return self._roll(tensor, self._forth, 1)

    def restore(self, tensor: torch.Tensor) -> torch.Tensor:
        """Undo `align`: (batch, length, ...)."""
        return self._roll(tensor, self._back, 1)

    def restore_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """(batch, heads, length, end) weights of the aligned rows, as those of the rows that were given."""
        return self._roll(self._roll(weights, self._back, 2), self._back_all, 3)

    @staticmethod
    def _roll(tensor: torch.Tensor | None, index: torch.Tensor | None, dim: int) -> torch.Tensor | None:
        if tensor is None or index is None:
            return tensor
        index = index.view(index.shape[0], *[1] * (dim - 1), index.shape[1], *[1] * (tensor.dim() - dim - 1))
        shape = (index.shape[0], *tensor.shape[1:])
        return tensor.expand(shape).gather(dim, index.expand(shape))
