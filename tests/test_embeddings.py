"""Ids and positions to vectors, against a matrix product and a loop in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from l1_ref.config import L1Config
from l1_ref.embeddings import InputEmbedding, PositionalEmbedding, TokenEmbedding, sinusoidal_positions

TOY = L1Config(vocab_size=11, max_seq_length=7, n_layers=1, n_heads=2, n_embd=6, dropout=0.5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_token_embedding_is_a_product_with_one_hot_rows(dtype):
    embedding = TokenEmbedding(11, 6)
    ids = torch.tensor([[3, 0, 10, 3], [10, 10, 1, 0]], dtype=dtype)
    one_hot = F.one_hot(ids.long(), 11).float()
    x, expected = embedding(ids), one_hot @ embedding.weight
    assert x.shape == (2, 4, 6)
    assert torch.equal(x, expected)
    upstream = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(x, embedding.weight, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, embedding.weight, upstream)
    torch.testing.assert_close(gradient, expected_gradient)  # an id met twice gets both gradients


@pytest.mark.parametrize("wrong", [-1, 11, -100, 2**40])
def test_ids_out_of_range_are_refused_by_value(wrong):
    with pytest.raises(ValueError, match=rf"^ids must be in 0\.\.10 \(vocab_size=11\), got {wrong}$"):
        TokenEmbedding(11, 6)(torch.tensor([[0, 10, wrong]]))


@pytest.mark.parametrize("max_seq_length, n_embd", [(1, 2), (9, 6), (2048, 32)])
def test_sinusoidal_positions_equal_a_float64_loop(max_seq_length, n_embd):
    expected = [
        [(math.cos if c % 2 else math.sin)(t / 10_000 ** ((c - c % 2) / n_embd)) for c in range(n_embd)]
        for t in range(max_seq_length)
    ]
    table = sinusoidal_positions(max_seq_length, n_embd)
    assert table.dtype == torch.float32
    # Half a unit in the last place of float32 is 6e-8 just below 1.
    torch.testing.assert_close(table.double(), torch.tensor(expected).double(), rtol=0, atol=1.2e-7)


def test_sinusoidal_positions_need_an_even_width():
    with pytest.raises(ValueError, match="n_embd must be even for sinusoidal positions, got n_embd=5"):
        sinusoidal_positions(3, 5)


@pytest.mark.parametrize("T, offset", [(7, 0), (1, 6), (3, 2), (1, 0)])
def test_positions_are_rows_from_the_offset_on(T, offset):
    embedding = PositionalEmbedding(7, 6)
    assert torch.equal(embedding(T, offset), embedding.weight[offset : offset + T])


@pytest.mark.parametrize("T, offset", [(8, 0), (1, 7), (3, 5), (0, 0), (2, -1)])
@pytest.mark.parametrize("position_encoding", ["learned", "sinusoidal"])
def test_positions_that_do_not_exist_are_refused(position_encoding, T, offset):
    config = L1Config.from_dict(TOY.to_dict() | {"position_encoding": position_encoding})
    with pytest.raises(ValueError, match=rf"max_seq_length=7, .* got T={T}, offset={offset}$"):
        InputEmbedding(config).position(T, offset)


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("position_encoding", ["learned", "sinusoidal"])
def test_input_embedding_adds_tokens_and_positions(position_encoding, offset):
    config = L1Config.from_dict(TOY.to_dict() | {"position_encoding": position_encoding})
    embedding = InputEmbedding(config).eval()
    ids = torch.randint(11, (3, 4))
    learned = position_encoding == "learned"
    positions = embedding.position.weight if learned else sinusoidal_positions(7, 6)
    expected = embedding.token.weight[ids] + positions[offset : offset + 4]
    assert torch.equal(embedding(ids, offset), expected)
    assert set(embedding.state_dict()) == {"token.weight"} | ({"position.weight"} if learned else set())


def test_dropout_falls_on_the_sum_and_only_in_training():
    embedding = InputEmbedding(TOY)
    ids = torch.randint(11, (50, 7))
    whole = embedding.eval()(ids)
    dropped = embedding.train()(ids)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])  # 1 / (1 - 0.5)
    assert 0.4 < kept.float().mean() < 0.6
