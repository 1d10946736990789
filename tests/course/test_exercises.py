"""The solutions of the course's exercises agree with the package."""

import pytest
import torch

from course.exercises import sinkhorn as solved_sinkhorn
from course.exercises import synthesizer as solved_synthesizer
from synkhorn import SynthesizerConfig, SynthesizerModel, sinkhorn
from synkhorn.modeling.modeling_synthesizer import Dense
from synkhorn.modeling.rows import Rows
from synkhorn.modeling.sinkhorn_attention import Options, literal_sinkhorn_attention
from synkhorn.modeling.synthesizer_logits import expand_factors

FIELDS = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "pad_token_id": None}


def test_dense_logits():
    config = SynthesizerConfig(**FIELDS, num_attention_heads=1, max_position_embeddings=7)
    member = Dense(config)
    member.initialize_parameters(0.5)
    torch.nn.init.normal_(member.bias)
    x = torch.randn(5, 8)
    written = member(x[None], None).padded(Rows.whole((1, 5), x.device)).written(5)[0, 0]
    solution = solved_synthesizer.dense_logits(
        x, member.input.weight.T, member.input.bias, member.weight[0].T, member.bias[0]
    )
    torch.testing.assert_close(solution, written)


@pytest.mark.parametrize(("heads", "length"), [(1, 5), (2, 16), (4, 9)])
def test_attention_parameters(heads, length):
    config = SynthesizerConfig(
        **FIELDS, num_attention_heads=heads, max_position_embeddings=length, synthesizers=["random"]
    )
    attention = SynthesizerModel(config).layers[0].attention
    assert solved_synthesizer.attention_parameters(config) == sum(p.numel() for p in attention.parameters())


def test_factorized_row():
    a, b = torch.randn(3), torch.randn(4)
    torch.testing.assert_close(solved_synthesizer.factorized_row(a, b, 10), expand_factors(a, b, 10))


@pytest.mark.parametrize("iterations", [1, 7])
def test_balance(iterations):
    logits = torch.randn(6, 6)
    torch.testing.assert_close(solved_sinkhorn.balance(logits, iterations), sinkhorn(logits, None, iterations))


@pytest.mark.parametrize(("length", "size"), [(128, 8), (2048, 32), (8192, 64)])
def test_best_block_size(length, size):
    assert solved_sinkhorn.best_block_size(length) == size


def test_sorted_block_attention():
    q, k, v = torch.randn(3, 12, 5)
    s = sinkhorn(torch.randn(3, 3), None, 7)
    outputs, _ = literal_sinkhorn_attention(*(x[None, None] for x in (q, k, v)), s[None, None], None, Options(4, False))
    torch.testing.assert_close(solved_sinkhorn.sorted_block_attention(q, k, v, s, 4), outputs[0, 0])
