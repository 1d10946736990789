"""Where public Synthesizers went wrong: each faulty form is written here, and shown to fail a test that ours passes."""

import math

import pytest
import torch
from comparison import attend, rows_of
from variants import randomize, tiny_config

from synkhorn import SynthesizerModel
from synkhorn.modeling.modeling_synthesizer import SynthesizerAttention
from synkhorn.modeling.synthesizer_logits import expand_factors


def eager_weights(attention, x, mask=None):
    attention.config._attn_implementation = "eager"
    rows = rows_of(x, mask)
    return rows.scatter_weights(attention(rows.gather(x), rows)[1])


def rows_differ(logits: torch.Tensor) -> bool:
    """Whether the logits (H, L, L) of one query row are not those of every other."""
    return bool((logits - logits[:, :1]).abs().max() > 1e-3)


def test_factorized_random_differs_from_row_to_row():
    """mesh-TensorFlow: one vector for all queries, where the paper has R1 R2^T."""
    member = randomize(SynthesizerAttention(tiny_config(["factorized_random"]), 0)).members["factorized_random"]
    length = 13
    faulty = (member.query_weight.sum(1, keepdim=True) @ member.key_weight.transpose(-1, -2)).expand(-1, length, -1)
    assert not rows_differ(faulty)
    assert rows_differ(member(None, None).padded(rows_of(torch.zeros(1, length, 18))).written(length)[0])


def test_factorized_dense_covers_every_pair_of_factors():
    """Other ports: both factors tiled, so that only lcm(a, b) of the a b columns differ."""
    a, b = 4, 6
    slow = torch.tensor([[2.0, 3.0, 5.0, 7.0]])
    fast = torch.tensor([[11.0, 13.0, 17.0, 19.0, 23.0, 29.0]])
    faulty = slow.repeat(1, b) * fast.repeat(1, a)
    assert len(set(faulty[0].tolist())) == math.lcm(a, b)
    ours = expand_factors(slow, fast, a * b)
    assert ours[0].tolist() == [p * q for p in slow[0].tolist() for q in fast[0].tolist()]
    assert len(set(ours[0].tolist())) == a * b


@pytest.mark.parametrize("name", ["random", "fixed_random"])
def test_random_is_normalised(name):
    """Other ports: no softmax, so that the weights of a row are any numbers."""
    attention = randomize(SynthesizerAttention(tiny_config([name]), 0))
    faulty = attention.members[name].weight
    assert (faulty.sum(-1) - 1).abs().max() > 0.1
    weights = eager_weights(attention, torch.randn(2, 13, 18))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 13))


def test_the_random_matrix_is_learned():
    """Other ports: a plain tensor, which no optimizer sees and no checkpoint keeps."""
    model = SynthesizerModel(tiny_config(["random"]))
    name = "layers.0.attention.members.random.weight"
    assert name in dict(model.named_parameters()) and name in model.state_dict()
    model(torch.randint(0, 40, (2, 13))).last_hidden_state.square().sum().backward()
    assert dict(model.named_parameters())[name].grad.abs().max() > 0


def faulty_heads(hidden: torch.Tensor, heads: int) -> torch.Tensor:
    """Long Range Arena: (B, L, H w) viewed as (B, H, L, w) without the transpose, which mixes heads and positions."""
    batch, length, width = hidden.shape
    return hidden.reshape(batch, heads, length, width // heads)


@pytest.mark.parametrize("name", ["dense", "factorized_dense"])
def test_a_query_row_depends_on_its_own_token_only(name):
    """Long Range Arena: heads and positions scrambled by a reshape."""
    x = torch.randn(1, 12, 18)
    other = x.clone()
    other[:, 5] += 1.0
    changed = (faulty_heads(other, 3) - faulty_heads(x, 3)).abs().sum(-1)[0] > 0
    assert {row for head, row in changed.nonzero().tolist()} != {5}
    attention = randomize(SynthesizerAttention(tiny_config([name]), 0))
    changed = (eager_weights(attention, other) - eager_weights(attention, x)).abs().sum(-1)[0] > 0
    assert changed[:, 5].all() and changed.sum() == 3


@pytest.mark.parametrize("name", ["dense", "random", "fixed_random", "factorized_random", "factorized_dense"])
def test_padding_gets_no_weight_without_a_dot_product(name):
    """Long Range Arena: padding ignored where no dot product is a member."""
    attention = randomize(SynthesizerAttention(tiny_config([name]), 0))
    x = torch.randn(2, 12, 18)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    faulty = eager_weights(attention, x)[1, :, :7, 7:]
    assert faulty.max() > 0.01
    assert eager_weights(attention, x, mask)[1, :, :, 7:].max() == 0
    attention.config._attn_implementation = "sdpa"
    alone = attend(attention, x[1:, :7])
    torch.testing.assert_close(attend(attention, x, mask)[1:, :7], alone, atol=1e-5, rtol=1e-5)
