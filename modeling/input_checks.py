"""Checks of a model's input: each raises a `ValueError` that names the argument, its value and what would be right."""

import torch
from transformers.cache_utils import Cache

from ..configuration.configuration_backbone import BackboneConfig
from .rows import has_transforms, is_static

# the literal forms and the fast ones
IMPLEMENTATIONS = ("eager", "sdpa")


def reads_values(tensor: torch.Tensor) -> bool:
    """Whether values may be looked at: not in a traced graph, nor on an accelerator, which would have to be awaited."""
    return tensor.device.type == "cpu" and not is_static()


def check_range(name: str, ids: torch.Tensor | None, field: str, size: int) -> None:
    """Check that ids lie inside the `size` rows of an embedding, which itself fails where values cannot be read."""
    if ids is None or not ids.numel() or not reads_values(ids):
        return
    for extreme in ids.aminmax():
        if not 0 <= extreme < size:
            raise ValueError(f"{name} holds {extreme}, but {field}={size}: ids lie in 0 to {size - 1}")


def check_no_types(token_type_ids: torch.Tensor) -> None:
    """Check that types are all 0, as tokenizers of BERT give them; where values cannot be read it is asserted."""
    fault = "but type_vocab_size=0: set it in the configuration, or call the tokenizer with return_token_type_ids=False"
    if not reads_values(token_type_ids):
        torch._assert_async((token_type_ids == 0).all(), f"token_type_ids holds types other than 0, {fault}")
    elif token_type_ids.any():
        raise ValueError(f"token_type_ids holds {token_type_ids.max()}, {fault}")


def check_inputs(
    config: BackboneConfig,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
) -> None:
    """Check everything but the mask and the maximal length."""
    if config._attn_implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation={config._attn_implementation!r} is not one that this model has: choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, but must be (batch, length)")
    if inputs_embeds is not None and (inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != config.hidden_size):
        raise ValueError(
            f"inputs_embeds has shape {tuple(inputs_embeds.shape)}, but must be (batch, length, "
            f"hidden_size={config.hidden_size})"
        )
    batch, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
    if length < 1:
        longest = config.max_position_embeddings
        raise ValueError(f"the input has 0 tokens, but this model takes 1 to max_position_embeddings={longest}")
    for name, ids in (("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if ids is None:
            continue
        # one comparison at a time: a traced graph does not find sizes that it does not know in a tuple
        is_wide = ids.dim() == 2 and ids.shape[1] == length
        if not (is_wide and (ids.shape[0] == batch or ids.shape[0] == 1)):
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, but must be {(batch, length)} or (1, {length})")
    if token_type_ids is not None and not config.type_vocab_size:
        check_no_types(token_type_ids)
    check_range("input_ids", input_ids, "vocab_size", config.vocab_size)
    if config.type_vocab_size:
        check_range("token_type_ids", token_type_ids, "type_vocab_size", config.type_vocab_size)
    if config.position_embedding_type == "learned":
        check_range("position_ids", position_ids, "max_position_embeddings", config.max_position_embeddings)


def check_length(config: BackboneConfig, length: int, past_length: int = 0) -> None:
    """Check the tokens of the longest row, those in a cache included, against the maximal length."""
    longest = config.max_position_embeddings
    if past_length and past_length + length > longest:
        raise ValueError(
            f"{length} tokens after the {past_length} in past_key_values are more than "
            f"max_position_embeddings={longest}"
        )
    if length > longest:
        raise ValueError(
            f"the input has {length} tokens, but this model takes 1 to max_position_embeddings={longest}: truncate it "
            "(truncation=True does, if the tokenizer's model_max_length is that number too), or call "
            "resize_max_position_embeddings"
        )


def checked_mask(
    attention_mask: torch.Tensor | None, shape: tuple[int, int], past_key_values: Cache | None
) -> torch.Tensor | None:
    """
    The mask as booleans of a shape, (batch, columns); a static cache admits a mask of its own length. `None` if there
    is none.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() == 4 and past_key_values is not None:
        attention_mask = of_causal_mask(attention_mask, shape)
    if attention_mask.is_floating_point() and reads_values(attention_mask) and (attention_mask < 0).any():
        raise ValueError(
            "attention_mask holds negative numbers: it must be 1 at valid tokens and 0 at padding, and not what is "
            "added to logits"
        )
    given = tuple(attention_mask.shape)
    if past_key_values is not None and given == (shape[0], past_key_values.get_max_length()):
        attention_mask = attention_mask[:, : shape[1]]
    elif given != shape:
        raise ValueError(
            f"attention_mask has shape {given}, but must have one value for each token, those in the cache too, "
            f"(batch, length) = {shape}"
        )
    # a cache keeps it, whatever the caller does to his own
    return attention_mask.to(torch.bool, copy=True)


def of_causal_mask(square: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """
    The (batch, columns) mask that Transformers made a (batch, 1, new tokens, columns) causal one of, as `generate` does
    for the decoder of an `EncoderDecoderModel` with a static cache: booleans, or numbers that are added to logits.
    """
    seen = square if square.dtype == torch.bool else square == 0
    new, columns = seen.shape[2:]
    mask = seen[:, 0, -1]
    if reads_values(seen):
        ends = shape[1] - new + 1 + torch.arange(new, device=seen.device)  # of what each new token sees
        if not torch.equal(seen[:, 0], mask[:, None] & (torch.arange(columns, device=seen.device) < ends[:, None])):
            raise ValueError(
                f"attention_mask has shape {tuple(square.shape)}, and is not causal: give (batch, length), 1 at valid "
                "tokens"
            )
    return mask


def packed_lengths(
    shape: tuple[int, int],
    mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    seq_idx: torch.Tensor | None = None,
) -> list[int] | None:
    """
    The lengths of the documents of packed input, `None` for other input.

    A batch of one is packed if `cu_seq_lens_q` or `seq_idx` say so. Any batch is if it has neither mask nor cache and
    its `position_ids` restart: each is one more than the one before, or the first one of its row again. Other
    `position_ids` only say where position embeddings are read.

    Args:
        shape: (batch, length) of the input.
        cu_seq_lens_q, cu_seq_lens_k: (documents + 1,), where each document begins, from 0, and the whole length.
        max_length_q, max_length_k: length of the longest document.
        seq_idx: (1, length), the number of each token's document.
    """
    told = {"cu_seq_lens_q": cu_seq_lens_q, "cu_seq_lens_k": cu_seq_lens_k, "seq_idx": seq_idx}
    told = {name: tensor for name, tensor in told.items() if tensor is not None}
    batch, length = shape
    if not told and (position_ids is None or mask is not None or past_key_values is not None):
        return None
    if is_static():
        if told:
            raise ValueError(f"{next(iter(told))} was given: packed input cannot be traced or compiled")
        jumps, elsewhere = jumps_of(position_ids)
        fault = "position_ids restart: packed input cannot be traced or compiled"
        is_plain = elsewhere.any() | ~jumps.any()
        if not has_transforms():
            torch._assert_async(is_plain, fault)
        elif not is_plain:
            raise ValueError(fault)
        return None
    if not told:
        starts = starts_of_restarting(position_ids)
        if max(map(len, starts)) < 2:
            return None
        starts = starts if len(starts) == batch else starts * batch
        return [count for row in starts for count in lengths_between(row, length)]
    for name in told:
        if batch != 1:
            raise ValueError(f"{name} was given with a batch of {batch}: packed input is a batch of one")
        if past_key_values is not None:
            raise ValueError(f"{name} was given with past_key_values: packed input takes no cache")
        if mask is not None and not mask.all():
            raise ValueError(f"{name} was given with an attention_mask that hides tokens: leave one of them out")
    found = {}
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if name in told:
            edges = told[name].flatten().tolist()
            if len(edges) < 2 or edges[0] != 0 or edges[-1] != length or sorted(set(edges)) != edges:
                raise ValueError(f"{name}={edges} must rise from 0 to the number of tokens, {length}")
            found[name] = lengths_between(edges[:-1], length)
    if seq_idx is not None:
        if tuple(seq_idx.shape) != (1, length):
            raise ValueError(f"seq_idx has shape {tuple(seq_idx.shape)}, but must be {(1, length)}")
        changes = (seq_idx[0, 1:] != seq_idx[0, :-1]).nonzero().flatten() + 1
        found["seq_idx"] = lengths_between([0, *changes.tolist()], length)
    (name, lengths), *others = found.items()
    for other, other_lengths in others:
        if other_lengths != lengths:
            raise ValueError(f"{other} gives documents of {other_lengths} tokens, but {name} of {lengths}")
    for other, given in (("max_length_q", max_length_q), ("max_length_k", max_length_k)):
        if given is not None and int(given) != max(lengths):
            raise ValueError(f"{other}={int(given)}, but the longest document has {max(lengths)} tokens")
    return lengths


def jumps_of(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, length - 1), where positions do not go on by one, and where they do not go back to their first either."""
    jumps = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return jumps, jumps & (position_ids[:, 1:] != position_ids[:, :1])


def starts_of_restarting(position_ids: torch.Tensor) -> list[list[int]]:
    """Where the positions of each row restart at the first of them, 0 included; [0] if any row does anything else."""
    jumps, others = jumps_of(position_ids)
    if others.any():
        return [[0] for _ in position_ids]
    return [[0, *(row.nonzero().flatten() + 1).tolist()] for row in jumps]


def lengths_between(starts: list[int], end: int) -> list[int]:
    return [stop - start for start, stop in zip(starts, [*starts[1:], end], strict=True)]
