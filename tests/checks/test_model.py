"""The checks of 05_model: mistakes in other words than the catalogue's, right answers in many styles, stubs."""

import copy
import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import l1_ref
from l1_ref import checks
from l1_ref.checks.counting import COUNT_PARAMETERS
from l1_ref.checks.initial import INIT_WEIGHTS
from l1_ref.checks.model import L1_MODEL
from l1_ref.checks.tying import TIE_WEIGHTS
from tests.check_cases import (
    assert_accepted,
    assert_all_told,
    assert_named_first,
    assert_rejected,
    assert_same_on_two_threads,
    cases,
)

# count_parameters: wrong answers, as learners write them.


def linear(n_in, n_out, bias=True):
    return n_in * n_out + (n_out if bias else 0)


def parts(c):
    """Return the right count in parts: what wrong answers leave out, or count otherwise."""
    C, L = c.n_embd, c.n_layers
    return {
        "token": c.vocab_size * C,
        "position": c.max_seq_length * C if c.position_encoding == "learned" else 0,
        "qkv": L * linear(C, 3 * C),
        "proj": L * linear(C, C),
        "fc": L * linear(C, c.n_inner),
        "down": L * linear(c.n_inner, C),
        "norms": L * 4 * C,
        "norm": 2 * C,
        "head": 0 if c.tie_weights else c.vocab_size * C,
    }


def total(c, **other):
    return sum((parts(c) | other).values())


def head_always(c):
    return total(c, head=c.vocab_size * c.n_embd)


def head_never(c):
    return total(c, head=0)


def head_turned(c):
    return total(c, head=c.n_embd * c.vocab_size if c.tie_weights else 0)


def head_with_bias(c):
    return total(c, head=0 if c.tie_weights else linear(c.n_embd, c.vocab_size))


def head_always_with_bias_alone(c):
    return total(c) + c.vocab_size


def no_table(c):
    return total(c, token=0)


def table_only_if_untied(c):
    return total(c, token=0, head=0) + (0 if c.tie_weights else c.n_embd * c.vocab_size)


def no_positions(c):
    return total(c, position=0)


def waves_counted(c):
    return total(c, position=c.max_seq_length * c.n_embd)


def no_linear_biases(c):
    C, L = c.n_embd, c.n_layers
    return total(c, qkv=3 * L * C * C, proj=L * C * C, fc=L * C * c.n_inner, down=L * C * c.n_inner)


def no_attention_biases(c):
    return total(c, qkv=3 * c.n_layers * c.n_embd**2, proj=c.n_layers * c.n_embd**2)


def no_block_norms(c):
    return total(c, norms=0)


def no_feed_forward_biases(c):
    return total(c, fc=c.n_layers * c.n_embd * c.n_inner, down=c.n_layers * c.n_embd * c.n_inner)


def no_fc_bias(c):
    return total(c, fc=c.n_layers * linear(c.n_embd, c.n_inner, bias=False))


def no_down_bias(c):
    return total(c, down=c.n_layers * linear(c.n_inner, c.n_embd, bias=False))


def no_qkv_bias(c):
    return total(c, qkv=c.n_layers * linear(c.n_embd, 3 * c.n_embd, bias=False))


def one_norm_a_block(c):
    return total(c, norms=c.n_layers * 2 * c.n_embd)


def fc_bias_of_c(c):
    return total(c, fc=c.n_layers * (c.n_embd * c.n_inner + c.n_embd))


def down_bias_of_f(c):
    return total(c, down=c.n_layers * (c.n_embd * c.n_inner + c.n_inner))


def no_norms(c):
    return total(c, norms=0, norm=0)


def scales_only(c):
    return total(c, norms=2 * c.n_layers * c.n_embd, norm=c.n_embd)


def no_last_norm(c):
    return total(c, norm=0)


def last_norm_in_every_block(c):
    return total(c, norms=6 * c.n_embd * c.n_layers, norm=0)


def four_times(c):
    return total(c, fc=c.n_layers * linear(c.n_embd, 4 * c.n_embd), down=c.n_layers * linear(4 * c.n_embd, c.n_embd))


def no_projection(c):
    return total(c, proj=0)


def no_projection_matrix(c):
    return total(c, proj=c.n_layers * c.n_embd)


def one_of_three(c):
    return total(c, qkv=c.n_layers * linear(c.n_embd, c.n_embd))


def per_head(c):
    return total(c, qkv=c.n_layers * c.n_heads * linear(c.n_embd, 3 * c.n_embd))


def attention_per_head(c):
    return total(c, qkv=c.n_heads * parts(c)["qkv"], proj=c.n_heads * parts(c)["proj"])


def one_head(c):
    return total(c, qkv=c.n_layers * linear(c.n_embd, 3 * (c.n_embd // c.n_heads)))


def one_matrix(c):
    return total(c, down=0)


def one_block(c):
    return total(c, **{key: parts(c)[key] // c.n_layers for key in ("qkv", "proj", "fc", "down", "norms")})


def one_block_too_many(c):
    block = sum(parts(c)[key] // c.n_layers for key in ("qkv", "proj", "fc", "down", "norms"))
    return total(c) + block


def with_masks(c):
    return total(c) + c.n_layers * c.max_seq_length**2


def thumb(c):
    return 12 * c.n_layers * c.n_embd**2 + c.vocab_size * c.n_embd


def thumb_without_tables(c):
    return 12 * c.n_layers * c.n_embd**2


def as_gpt2(c):
    return (c.vocab_size + c.max_seq_length + 2) * c.n_embd + c.n_layers * (12 * c.n_embd**2 + 13 * c.n_embd)


def as_float(c):
    return total(c) / 1


def built(c):
    return sum(math.prod(p.shape) for p in l1_ref.L1Model(c).parameters())


def built_on_meta(c):
    with torch.device("meta"):
        return sum(p.numel() for p in l1_ref.L1Model(c).parameters())


def all_in_every_block(c):
    return c.n_layers * total(c)


def all_attention_matrices_per_head(c):
    return total(c) + c.n_layers * (c.n_heads - 1) * 4 * c.n_embd * c.n_embd


def thumb_with_right_tables(c):
    known = parts(c)
    return known["token"] + known["position"] + known["head"] + 12 * c.n_layers * c.n_embd**2


COUNT_WRONG = {
    head_always: "head is counted although",
    head_never: "left out although it is untied",
    head_turned: "turned round",
    head_with_bias: "bias is counted for the head",
    head_always_with_bias_alone: "bias is counted for the head",
    no_table: "token table is left out",
    table_only_if_untied: "token table is left out",
    no_positions: "positions are left out",
    waves_counted: "sinusoidal positions are counted",
    no_linear_biases: "biases of the linear layers",
    no_attention_biases: "4C short",
    no_block_norms: "4C short",
    no_feed_forward_biases: "n_inner + C short",
    no_fc_bias: "n_inner short: the biases of fc",
    no_down_bias: "each block is C short",
    no_qkv_bias: "3C short",
    one_norm_a_block: "2C short",
    fc_bias_of_c: "bias of fc is counted as C",
    down_bias_of_f: "proj is counted as n_inner",
    all_in_every_block: "everything is counted once a block",
    all_attention_matrices_per_head: "qkv is counted once a head",
    thumb_with_right_tables: "rule of thumb",
    no_norms: "the norms are left out",
    scales_only: "one vector of C",
    no_last_norm: "last norm is left out",
    last_norm_in_every_block: "once a block",
    four_times: "n_inner is ignored",
    no_projection: "output projection",
    no_projection_matrix: "output projection",
    one_of_three: "counted once, not three times",
    per_head: "qkv is counted once a head",
    attention_per_head: "qkv is counted once a head",
    one_head: "only one head",
    one_matrix: "with one matrix",
    one_block: "one block is counted",
    one_block_too_many: "off by one",
    with_masks: "causal mask",
    thumb: "rule of thumb",
    thumb_without_tables: "rule of thumb",
    as_gpt2: "GPT-2's own design",
    as_float: "is a float",
    built: "a model is built",
    built_on_meta: "a model is built",
}


# Right answers.


def by_factoring(config):
    C, F_, L = config.n_embd, config.n_inner, config.n_layers
    block = 4 * C * (C + 1) + 2 * C * F_ + F_ + C + 4 * C
    tables = config.vocab_size * (1 if config.tie_weights else 2)
    if config.position_encoding == "learned":
        tables += config.max_seq_length
    return (tables + 2) * C + L * block


def by_loop(config):
    n = 0
    for _ in range(config.n_layers):
        for n_in, n_out in ((config.n_embd, 3 * config.n_embd), (config.n_embd, config.n_embd)):
            n += n_in * n_out + n_out
        n += sum([config.n_embd * config.n_inner * 2, config.n_inner, config.n_embd, 2 * config.n_embd * 2])
    n += config.vocab_size * config.n_embd * (2 - int(config.tie_weights)) + 2 * config.n_embd
    n += {"learned": config.max_seq_length * config.n_embd}.get(config.position_encoding, 0)
    return n


def by_shapes(config):
    C = config.n_embd
    shapes = [(config.vocab_size, C), (C,), (C,)]
    shapes += [] if config.tie_weights else [(config.vocab_size, C)]
    shapes += [(config.max_seq_length, C)] if config.position_encoding == "learned" else []
    block = [(3 * C, C), (3 * C,), (C, C), (C,), (config.n_inner, C), (config.n_inner,), (C, config.n_inner), (C,)]
    return sum(math.prod(shape) for shape in shapes + config.n_layers * (block + 4 * [(C,)]))


def by_heads(config):
    D = config.n_embd // config.n_heads
    qkv = config.n_heads * 3 * (config.n_embd * D + D)
    return total(config, qkv=config.n_layers * qkv)


def by_torch_sum(config):
    return int(torch.tensor(list(parts(config).values())).sum())


COUNT_RIGHT = [by_factoring, by_loop, by_shapes, by_heads, by_torch_sum, total]
COUNT_STUBS = [
    lambda c: None,
    lambda c: 0,
    lambda c: -1,
    lambda c: c,
    lambda c: c.vocab_size,
    lambda c: 541_184,
    lambda c: torch.tensor(total(c)),
    lambda c: str(total(c)),
    lambda c: f"{total(c):,}",
    lambda c: [total(c)],
    lambda c: total(c) + 1,
    lambda c: round(total(c), -2),
    lambda c: total(c) * 4,
]

# init_weights.


def init(model, config, std=None, residual=None, matrices=None):
    """Initialise rightly, but for what is said otherwise."""
    std = config.init_std if std is None else std
    for name, p in model.named_parameters():
        if p.dim() == 1:
            nn.init.constant_(p, float("norm" in name and "weight" in name))
        elif "proj.weight" in name:
            nn.init.normal_(p, 0.0, std / math.sqrt(2 * config.n_layers) if residual is None else residual)
        else:
            (matrices or (lambda p: nn.init.normal_(p, 0.0, std)))(p)


def not_scaled(model, config):
    init(model, config, residual=config.init_std)


def not_scaled_for_want_of_c_proj(model, config):
    for p in model.parameters():
        (nn.init.normal_(p, std=config.init_std) if p.dim() > 1 else None)
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.normal_(p, std=config.init_std / math.sqrt(2 * config.n_layers))
        if name.endswith("bias"):
            nn.init.zeros_(p)
        elif "norm" in name:
            nn.init.ones_(p)


def root_of_layers(model, config):
    init(model, config, residual=config.init_std / math.sqrt(len(model.blocks)))


def no_root(model, config):
    init(model, config, residual=config.init_std / (2 * config.n_layers))


def multiplied(model, config):
    init(model, config, residual=config.init_std * math.sqrt(2 * config.n_layers))


def own_depth(model, config):
    init(model, config)
    for i, block in enumerate(model.blocks):
        for part in (block.attention, block.feed_forward):
            nn.init.normal_(part.proj.weight, std=config.init_std / math.sqrt(2 * (i + 1)))


def all_scaled(model, config):
    init(model, config, std=config.init_std / (2 * config.n_layers) ** 0.5, residual=None)
    for block in model.blocks:
        for part in (block.attention, block.feed_forward):
            nn.init.normal_(part.proj.weight, std=config.init_std / math.sqrt(2 * config.n_layers))


def only_attention(model, config):
    init(model, config, residual=config.init_std)
    for block in model.blocks:
        nn.init.normal_(block.attention.proj.weight, std=config.init_std / math.sqrt(2 * config.n_layers))


def only_feed_forward(model, config):
    init(model, config, residual=config.init_std)
    for block in model.blocks:
        nn.init.normal_(block.feed_forward.proj.weight, std=config.init_std / math.sqrt(2 * config.n_layers))


def fc_scaled(model, config):
    init(model, config, residual=config.init_std)
    for block in model.blocks:
        nn.init.normal_(block.feed_forward.fc.weight, std=config.init_std / math.sqrt(2 * config.n_layers))


def constant_std(model, config):
    init(model, config, std=0.02)


def variance(model, config):
    init(model, config, std=math.sqrt(config.init_std), residual=(config.init_std / (2 * config.n_layers)) ** 0.5)


def squared(model, config):
    init(model, config, std=config.init_std**2)


@torch.no_grad()
def biases_left(model, config):
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            scale = (2 * config.n_layers) ** -0.5 if "proj" in name else 1
            p.copy_(torch.randn(p.shape) * config.init_std * scale)
        elif "weight" in name:
            p.fill_(1)


def linear_and_embeddings_only(model, config):
    """As many do: Linear layers and tables, and no norm."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = math.sqrt(2 * config.n_layers) if name.endswith("proj") else 1
            nn.init.normal_(module.weight, std=config.init_std / scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif "Embedding" in type(module).__name__ and hasattr(module, "weight"):
            nn.init.normal_(module.weight, std=config.init_std)


def matrices_only(model, config):
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.data.normal_(0, config.init_std / (math.sqrt(2 * config.n_layers) if "proj" in name else 1))


def biases_drawn(model, config):
    init(model, config)
    for name, p in model.named_parameters():
        if "bias" in name:
            p.data = torch.randn_like(p) * config.init_std


def scales_drawn(model, config):
    init(model, config)
    for name, p in model.named_parameters():
        if "norm" in name and "weight" in name:
            nn.init.normal_(p, 0.0, config.init_std)


def all_drawn(model, config):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, config.init_std / ((2 * config.n_layers) ** 0.5 if name.endswith("proj.weight") else 1))


def vectors_zero(model, config):
    init(model, config)
    for p in model.parameters():
        if p.dim() < 2:
            p.data.zero_()


def vectors_one(model, config):
    init(model, config)
    for p in model.parameters():
        if p.dim() < 2:
            nn.init.ones_(p)


def by_type(model, config):
    """As in code written around nn.Embedding."""

    def visit(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, config.init_std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    model.apply(visit)
    for name, p in model.named_parameters():
        if name.endswith("proj.weight"):
            nn.init.normal_(p, 0.0, config.init_std / math.sqrt(2 * config.n_layers))


def kept(model, *names):
    return {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False) if n in names}


def put_back(model, saved):
    for n, p in model.named_parameters(remove_duplicate=False):
        if n in saved:
            p.data.copy_(saved[n])


def positions_left(model, config):
    saved = kept(model, "embedding.position.weight")
    init(model, config)
    put_back(model, saved)


def head_left(model, config):
    saved = kept(model, "head.weight") if not config.tie_weights else {}
    init(model, config)
    put_back(model, saved)


def children_only(model, config):
    for module in model.children():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=config.init_std)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def standard_normal_table(model, config):
    init(model, config)
    nn.init.normal_(model.embedding.token.weight)


def gpt2_positions(model, config):
    init(model, config)
    if config.position_encoding == "learned":
        nn.init.normal_(model.embedding.position.weight, std=config.init_std * 0.5)


def zero_positions(model, config):
    init(model, config)
    if config.position_encoding == "learned":
        model.embedding.position.weight.data = torch.zeros_like(model.embedding.position.weight)


def zero_projections(model, config):
    init(model, config, residual=0.0)


def uniform(model, config):
    s = config.init_std
    init(model, config, matrices=lambda p: nn.init.uniform_(p, -s, s))
    for name, p in model.named_parameters():
        if name.endswith("proj.weight"):
            nn.init.uniform_(p, -s / math.sqrt(2 * config.n_layers), s / math.sqrt(2 * config.n_layers))


def uniform_of_that_deviation(model, config):
    for name, p in model.named_parameters():
        if p.dim() > 1:
            s = config.init_std / (math.sqrt(2 * config.n_layers) if "proj" in name else 1)
            p.data = (torch.rand_like(p) * 2 - 1) * s * math.sqrt(3)
        else:
            p.data = torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)


def positive(model, config):
    uniform_of_that_deviation(model, config)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            p.data = torch.rand(p.shape) * config.init_std / (math.sqrt(2 * config.n_layers) if "proj" in name else 1)


def truncated(model, config):
    for name, p in model.named_parameters():
        if p.dim() > 1:
            s = config.init_std / (math.sqrt(2 * config.n_layers) if "proj" in name else 1)
            nn.init.trunc_normal_(p, 0.0, s, -2 * s, 2 * s)
        else:
            nn.init.constant_(p, 1.0 if name.endswith("weight") else 0.0)


def swapped(model, config):
    for name, p in model.named_parameters():
        if p.dim() > 1:
            nn.init.normal_(p, config.init_std / (math.sqrt(2 * config.n_layers) if "proj" in name else 1), 0.0)
        else:
            nn.init.constant_(p, 1.0 if name.endswith("weight") else 0.0)


def xavier(model, config):
    for name, p in model.named_parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)
        else:
            nn.init.constant_(p, 1.0 if name.endswith("weight") else 0.0)


def kaiming(model, config):
    for name, p in model.named_parameters():
        p.data = p.new_tensor(float(name.endswith("weight"))).expand_as(p).clone()
        if p.dim() > 1:
            nn.init.kaiming_normal_(p)


def seed_each(model, config):
    for name, p in model.named_parameters():
        torch.manual_seed(42)
        if p.dim() > 1:
            s = config.init_std / (math.sqrt(2 * config.n_layers) if "proj" in name else 1)
            p.data = s * torch.randn(p.shape)
        else:
            p.data.fill_(name.endswith("weight"))


def new_parameters(model, config):
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is not None:
            w = module.weight
            s = config.init_std / (math.sqrt(2 * config.n_layers) if name.endswith("proj") else 1)
            module.weight = nn.Parameter(torch.randn(w.shape) * s if w.ndim > 1 else torch.ones_like(w))
        if getattr(module, "bias", None) is not None:
            module.bias = nn.Parameter(torch.zeros_like(module.bias))


def rebinding(model, config):
    for p in model.parameters():
        p = torch.randn_like(p) * config.init_std


def fresh_model(model, config):
    return l1_ref.L1Model(config)


def initialised_copy(model, config):
    other = copy.deepcopy(model)
    init(other, config)
    return other


def returned(model, config):
    init(model, config)
    return model


def proj_by_word_alone(model, config):
    for name, p in model.named_parameters():
        if "proj" in name:
            nn.init.normal_(p, 0.0, config.init_std / math.sqrt(2 * config.n_layers))
        elif p.dim() > 1:
            nn.init.normal_(p, 0.0, config.init_std)
        else:
            nn.init.constant_(p, float(name.endswith("weight")))


def last_norm_left(model, config):
    kept = copy.deepcopy(model.norm.state_dict())
    init(model, config)
    model.norm.load_state_dict(kept)


def new_parameters_by_name(model, config):
    for name, p in list(model.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        std = config.init_std / (math.sqrt(2 * config.n_layers) if name.endswith("proj.weight") else 1)
        start = torch.randn(p.shape) * std if p.ndim > 1 else torch.full(p.shape, float(name.endswith("weight")))
        setattr(model.get_submodule(owner), attribute, nn.Parameter(start))


INIT_WRONG = {
    new_parameters_by_name: "the Parameters are replaced",
    proj_by_word_alone: "biases of proj are drawn",
    last_norm_left: "last norm is left",
    not_scaled: "not scaled down",
    not_scaled_for_want_of_c_proj: "not scaled down",
    root_of_layers: "root of n_layers is taken",
    no_root: "without the root",
    multiplied: "multiplied by the root",
    own_depth: "own depth",
    all_scaled: "all matrices are scaled",
    only_attention: "only attention's proj",
    only_feed_forward: "only the feed-forward layer's proj",
    fc_scaled: "wrong layers are scaled",
    constant_std: "init_std is ignored",
    variance: "taken for the variance",
    squared: "taken for the variance",
    biases_left: "the biases are left",
    linear_and_embeddings_only: "the norms are left",
    matrices_only: "biases and norms are left",
    biases_drawn: "the biases are drawn",
    scales_drawn: "scales of the norms are drawn",
    all_drawn: "every parameter is drawn",
    vectors_zero: "scales of the norms are 0",
    vectors_one: "the biases are 1",
    by_type: "embeddings are left",
    positions_left: "positions are left",
    head_left: "the head is left",
    children_only: "only the top of the model",
    standard_normal_table: "drawn with std 1",
    gpt2_positions: "half of the deviation",
    zero_positions: "positions are 0",
    zero_projections: "residual projections are 0",
    uniform: "uniform, not normal",
    uniform_of_that_deviation: "uniform, not normal",
    positive: "all positive",
    truncated: "cut off at two deviations",
    swapped: "changed places",
    xavier: "xavier, kaiming",
    kaiming: "xavier, kaiming",
    seed_each: "the same random numbers",
    new_parameters: "replaced by new ones",
    rebinding: "left as it was",
    fresh_model: "left as it was",
    initialised_copy: "left as it was",
    returned: "the model is returned",
}


# Right answers.


def by_apply(model, config):
    def visit(module):
        if getattr(module, "weight", None) is not None:
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            else:
                nn.init.normal_(module.weight, mean=0.0, std=config.init_std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

    model.apply(visit)
    for name, p in model.named_parameters():
        if name.endswith("proj.weight"):
            nn.init.normal_(p, mean=0.0, std=config.init_std / math.sqrt(2 * config.n_layers))


def by_path(model, config):
    def drawn(*layers, std=config.init_std):
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=std)
            if getattr(layer, "bias", None) is not None:
                layer.bias.data.zero_()

    drawn(model.embedding.token, model.head)
    if config.position_encoding == "learned":
        drawn(model.embedding.position)
    for block in model.blocks:
        drawn(block.attention.qkv, block.feed_forward.fc)
        drawn(block.attention.proj, block.feed_forward.proj, std=config.init_std * (2 * config.n_layers) ** -0.5)
        for norm in (block.norm_1, block.norm_2):
            norm.reset_parameters()
    model.norm.reset_parameters()


def by_data(model, config):
    for name, p in model.named_parameters():
        p.data = torch.zeros_like(p) if p.ndim == 1 else torch.randn(p.shape) * config.init_std
        if "norm" in name and name.endswith("weight"):
            p.data += 1
        elif name.split(".")[-2:] == ["proj", "weight"]:
            p.data /= math.sqrt(2 * config.n_layers)


def by_state_dict(model, config):
    state = {}
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            n = 2 * config.n_layers if name.endswith("proj.weight") else 1
            state[name] = torch.normal(0.0, config.init_std / math.sqrt(n), value.shape)
        else:
            state[name] = torch.full_like(value, float("norm" in name and name.endswith("weight")))
    if config.tie_weights:
        state["head.weight"] = state["embedding.token.weight"]
    model.load_state_dict(state)


def wide_truncation(model, config):
    init(model, config, matrices=lambda p: nn.init.trunc_normal_(p, std=config.init_std))


def own_generator(model, config):
    generator = torch.Generator().manual_seed(torch.randint(2**31, ()).item())
    init(model, config, matrices=lambda p: p.data.normal_(0, config.init_std, generator=generator))


INIT_RIGHT = [init, by_apply, by_path, by_data, by_state_dict, wide_truncation, own_generator]
INIT_STUBS = [
    lambda model, config: None,
    lambda model, config: model,
    lambda model, config: config.init_std,
    lambda model, config: [p.data.zero_() for p in model.parameters()] and None,
    lambda model, config: [p.data.fill_(1.0) for p in model.parameters()] and None,
    lambda model, config: [nn.init.uniform_(p) for p in model.parameters()] and None,
    lambda model, config: [p.requires_grad_(False) for p in model.parameters()] and init(model, config),
    lambda model, config: init(model, config) or (model.double() and None),
    lambda model, config: init(model, config) or setattr(model.norm.weight, "data", torch.ones(3)),
    lambda model, config: init(model, config, std=2 * config.init_std),
    lambda model, config: init(model, config, residual=0.7 * config.init_std),
    lambda model, config: 1 / 0,
    lambda model: None,
]


def same_numbers_every_time(model, config):
    torch.manual_seed(1337)
    init(model, config)


# L1Model.


class Right(nn.Module):
    """Right, but for what a subclass changes."""

    bias, eps = False, None

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = l1_ref.InputEmbedding(config)
        self.blocks = self.make_blocks(config)
        self.norm = nn.LayerNorm(config.n_embd, eps=self.eps or config.layer_norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=self.bias)
        self.tie()
        self.start()

    def make_blocks(self, config):
        return nn.ModuleList([l1_ref.TransformerBlock(config) for _ in range(config.n_layers)])

    def tie(self):
        if self.config.tie_weights:
            self.head.weight = self.embedding.token.weight

    def start(self):
        l1_ref.init_weights(self, self.config)

    def embed(self, ids):
        return self.embedding(ids)

    def stack(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def read(self, x):
        return self.head(self.norm(x))

    def forward(self, ids):
        return self.read(self.stack(self.embed(ids)))


def changed(name, **changes):
    """Return `Right` with other methods or settings."""
    return type(name, (Right,), changes)


class NormForgotten(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = l1_ref.InputEmbedding(config)
        self.blocks = nn.Sequential(*[l1_ref.TransformerBlock(config) for _ in range(config.n_layers)])
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.embedding.token.weight
        l1_ref.init_weights(self, config)

    def forward(self, ids):
        return self.head(self.blocks(self.embedding(ids)))


def copy_table(self):
    if self.config.tie_weights:
        self.head.weight.data.copy_(self.embedding.token.weight.data)


def share_storage(self):
    if self.config.tie_weights:
        self.head.weight.data = self.embedding.token.weight.data


def tie_always(self):
    self.head.weight = self.embedding.token.weight


def tie_if_not(self):
    if not self.config.tie_weights:
        self.head.weight = self.embedding.token.weight


class Headless(Right):
    def tie(self):
        if self.config.tie_weights:
            del self.head

    def read(self, x):
        return F.linear(self.norm(x), (self.embedding.token if self.config.tie_weights else self.head).weight)


class EmbeddingTokenOnly(Right):
    def embed(self, ids):
        return self.embedding.dropout(self.embedding.token(ids))


class OneBlockRepeated(Right):
    def make_blocks(self, config):
        block = l1_ref.TransformerBlock(config)
        return nn.Sequential(*(config.n_layers * [block]))


class PlainList(nn.Module):
    """Builds the head first, so that chance gives other numbers than the catalogue's version gets."""

    def __init__(self, config):
        super().__init__()
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.blocks = []
        for _ in range(config.n_layers):
            self.blocks.append(l1_ref.TransformerBlock(config))
        self.embedding = l1_ref.InputEmbedding(config)
        if config.tie_weights:
            self.head.weight = self.embedding.token.weight
        l1_ref.init_weights(self, config)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class BlocksInForward(Right):
    def make_blocks(self, config):
        return None

    def stack(self, x):
        for _ in range(self.config.n_layers):
            x = l1_ref.TransformerBlock(self.config)(x)
        return x


class NormEachTime(Right):
    def stack(self, x):
        for block in self.blocks:
            x = self.norm(block(x))
        return x


class NormFirst(Right):
    def forward(self, ids):
        return self.head(self.stack(self.norm(self.embed(ids))))


class OneTooFew(Right):
    def make_blocks(self, config):
        return nn.ModuleList([l1_ref.TransformerBlock(config) for _ in range(1, config.n_layers)])


class OneTooMany(Right):
    def make_blocks(self, config):
        return nn.ModuleList([l1_ref.TransformerBlock(config) for _ in range(config.n_layers + 1)])


class DropoutBehindTheEmbedding(Right):
    def embed(self, ids):
        return F.dropout(self.embedding(ids), self.config.dropout, self.training)


class DropoutBeforeTheHead(Right):
    def read(self, x):
        return self.head(F.dropout(self.norm(x), self.config.dropout, self.training))


class InitBeforeBlocks(Right):
    def make_blocks(self, config):
        l1_ref.init_weights(self, config)
        return super().make_blocks(config)

    def start(self):
        pass


class AttentionOnTheLast(Right):
    def forward(self, ids):
        return super().forward(ids)[:, -1, :]


class LmHead(Right):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = self.head
        del self.head

    def read(self, x):
        return self.lm_head(self.norm(x))


class LnF(Right):
    def __init__(self, config):
        super().__init__(config)
        self.ln_f = self.norm
        del self.norm

    def read(self, x):
        return self.head(self.ln_f(x))


MODEL_WRONG = {
    LmHead: "parts are not called",
    LnF: "parts are not called",
    changed("TableAsHead", read=lambda self, x: self.norm(x) @ self.embedding.token.weight.T): "in place of the head",
    changed("SmallEps", eps=1e-6): "layer_norm_eps is ignored",
    changed("NormPassedOver", read=lambda self, x: self.head(x)): "the last norm is missing",
    NormForgotten: "the last norm is missing",
    changed("BiasedHead", bias=True): "the head has a bias",
    changed("NeverTied", tie=lambda self: None): "not tied",
    changed("TableCopied", tie=copy_table): "not tied",
    changed("StorageShared", tie=share_storage): "is another Parameter",
    changed("AlwaysTied", tie=tie_always): "tied although",
    changed("TiedIfNot", tie=tie_if_not): "turned round",
    Headless: "no module head",
    changed("Probabilities", read=lambda self, x: F.softmax(Right.read(self, x), dim=-1)): "softmax is applied",
    changed("LogProbabilities", read=lambda self, x: F.log_softmax(Right.read(self, x), -1)): "log_softmax is applied",
    EmbeddingTokenOnly: "positions are missing",
    OneBlockRepeated: "one and the same block",
    PlainList: "does not know the blocks",
    BlocksInForward: "made anew at each call",
    changed("LastOutput", stack=lambda self, x: [block(x) for block in self.blocks][-1]): "only the last one's output",
    changed("FirstBlock", stack=lambda self, x: self.blocks[0](x)): "only the first block",
    changed("NoBlocks", stack=lambda self, x: x): "blocks are passed over",
    changed("Backwards", stack=lambda self, x: nn.Sequential(*list(self.blocks)[::-1])(x)): "reverse order",
    type("Added", (Right,), {"stack": lambda self, x: added(self, x)}): "once more",
    NormEachTime: "after every block",
    NormFirst: "before the blocks",
    OneTooFew: "number of blocks",
    OneTooMany: "number of blocks",
    AttentionOnTheLast: "only the last position",
    changed("LastKept", read=lambda self, x: self.head(self.norm(x)[:, [-1]])): "only the last position",
    changed("Hidden", read=lambda self, x: self.norm(x)): "hidden states are returned",
    changed("Pair", read=lambda self, x: (Right.read(self, x), None)): "a tuple is returned",
    changed(
        "ScaledUp", embed=lambda self, ids: self.embedding(ids) * math.sqrt(self.config.n_embd)
    ): "multiplied by sqrt",
    changed("ScaledDown", read=lambda self, x: Right.read(self, x) / math.sqrt(self.config.n_embd)): "divided by sqrt",
    changed("DefaultEps", eps=1e-5): "layer_norm_eps is ignored",
    DropoutBehindTheEmbedding: "dropout outside",
    DropoutBeforeTheHead: "dropout outside",
    changed("NoInit", start=lambda self: None): "init_weights is not called",
    InitBeforeBlocks: "before the blocks are built",
}


def added(model, x):
    for block in model.blocks:
        x = block(x) + x
    return x


# Right answers.


class BySequential(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.norm = nn.LayerNorm(config.n_embd, config.layer_norm_eps)
        self.blocks = nn.Sequential(*(l1_ref.TransformerBlock(config, i) for i in range(config.n_layers)))
        self.embedding = l1_ref.InputEmbedding(config)
        l1_ref.init_weights(self, config)
        if config.tie_weights:
            self.embedding.token.weight = self.head.weight

    def forward(self, ids):
        return nn.Sequential(self.embedding, self.blocks, self.norm, self.head)(ids)


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd))
        self.eps = config.layer_norm_eps

    def forward(self, x):
        return l1_ref.layer_norm(x, self.weight, self.bias, self.eps)


class ByHand(nn.Module):
    """Own tables, own norm, functional calls, a mask of its own, and initial values set by hand."""

    def __init__(self, config):
        super().__init__()
        self.c = config
        self.embedding = nn.ModuleDict({"token": nn.Embedding(config.vocab_size, config.n_embd)})
        if config.position_encoding == "learned":
            self.embedding["position"] = nn.Embedding(config.max_seq_length, config.n_embd)
        else:
            waves = l1_ref.sinusoidal_positions(config.max_seq_length, config.n_embd)
            self.register_buffer("waves", waves, persistent=False)
        self.register_buffer("mask", torch.ones(config.max_seq_length, config.max_seq_length).tril().bool())
        self.blocks = nn.ModuleDict({str(i): l1_ref.TransformerBlock(config) for i in range(config.n_layers)})
        self.norm = Norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, False)
        by_apply(self, config)
        nn.init.ones_(self.norm.weight)
        if config.tie_weights:
            setattr(self.head, "weight", self.embedding["token"].weight)  # noqa: B010

    def forward(self, ids, targets=None):
        T = ids.shape[1]
        positions = self.waves[:T] if hasattr(self, "waves") else self.embedding["position"](torch.arange(T))
        x = F.dropout(self.embedding["token"](ids) + positions, self.c.dropout, self.training)
        for i in range(len(self.blocks)):
            x = self.blocks[str(i)](x)
        return torch.einsum("btc,vc->btv", self.norm(x), self.head.weight)


class WithHidden(Right):
    """Offers more than is asked: hidden states, and a cache that nobody hands in."""

    def hidden(self, ids, cache=None):
        x = self.embedding(ids, offset=0)
        for block in self.blocks:
            x = block(x, cache)
        return F.layer_norm(x, (self.config.n_embd,), self.norm.weight, self.norm.bias, self.config.layer_norm_eps)

    def forward(self, ids, cache=None):
        return F.linear(self.hidden(ids, cache), self.head.weight)


class OneRowAtATime(Right):
    def forward(self, ids):
        return torch.stack([super(OneRowAtATime, self).forward(row[None])[0] for row in ids])


class InFloat64(Right):
    def read(self, x):
        y = F.layer_norm(x.double(), x.shape[-1:], self.norm.weight.double(), self.norm.bias.double(), self.norm.eps)
        return (y @ self.head.weight.double().T).to(x.dtype)


class OwnInit(Right):
    def start(self):
        by_path(self, self.config)


MODEL_RIGHT = [Right, BySequential, ByHand, WithHidden, OneRowAtATime, InFloat64, OwnInit]
MODEL_STUBS = [
    nn.Linear,
    lambda config: None,
    lambda config: lambda ids: ids,
    lambda config: nn.Identity(),
    lambda config: nn.Embedding(config.vocab_size, config.vocab_size),
    changed("Zeros", read=lambda self, x: 0 * Right.read(self, x)),
    changed("Nothing", read=lambda self, x: None),
    changed("Noise", read=lambda self, x: torch.randn(*x.shape[:2], self.config.vocab_size)),
    changed("Double", read=lambda self, x: Right.read(self, x).double()),
    changed("List", read=lambda self, x: Right.read(self, x).tolist()),
    changed("Detached", read=lambda self, x: Right.read(self, x).detach()),
    changed("Transposed", read=lambda self, x: Right.read(self, x).transpose(1, 2)),
    changed("Squeezed", read=lambda self, x: Right.read(self, x).squeeze()),
    changed("Reversed", embed=lambda self, ids: self.embedding(ids.flip(1))),
    changed("Mixed", stack=lambda self, x: Right.stack(self, x) + Right.stack(self, x).mean(1, keepdim=True)),
    changed("TwiceThrough", stack=lambda self, x: Right.stack(self, Right.stack(self, x))),
    changed("Clipped", read=lambda self, x: Right.read(self, x).clamp(-1, 1)),
    changed("FrozenTable", start=lambda self: self.embedding.token.weight.requires_grad_(False)),
    l1_ref.TransformerBlock,
]

# tie_weights.


def clone(model):
    model.head.weight = nn.Parameter(model.embedding.token.weight.detach().clone())


def copy_in_place(model):
    with torch.no_grad():
        model.head.weight[:] = model.embedding.token.weight


def by_loading(model):
    model.head.load_state_dict({"weight": model.embedding.token.weight})


def data_of(model):
    model.head.weight.data = model.embedding.token.weight.data


def wrapped(model):
    model.head.weight = nn.Parameter(model.embedding.token.weight)


def turned(model):
    model.embedding.token.weight = model.head.weight


def turned_copy(model):
    with torch.no_grad():
        model.embedding.token.weight.copy_(model.head.weight)


def local_name(model):
    weight = model.head.weight
    weight = model.embedding.token.weight  # noqa: F841


def other_attribute(model):
    model.head.weights = model.embedding.token.weight


def both_new(model):
    shared = nn.Parameter(model.embedding.token.weight.data.clone())
    model.head.weight = shared
    model.embedding.token.weight = shared


def averaged(model):
    model.embedding.token.weight.data.add_(model.head.weight.data).div_(2)
    model.head.weight = model.embedding.token.weight


def heads_numbers(model):
    model.embedding.token.weight.data.copy_(model.head.weight.data)
    model.head.weight = model.embedding.token.weight


def frozen(model):
    model.head.weight = model.embedding.token.weight
    for p in model.head.parameters():
        p.requires_grad = False


def module_replaced(model):
    model.head = model.embedding.token


def tied_and_returned(model):
    model.head.weight = model.embedding.token.weight
    return model


def on_a_copy(model):
    return tied_and_returned(copy.deepcopy(model))


TIE_WRONG = {
    clone: "numbers are copied",
    copy_in_place: "numbers are copied",
    by_loading: "numbers are copied",
    data_of: "as two Parameters",
    wrapped: "as two Parameters",
    turned: "the other way round",
    turned_copy: "copied into the token table",
    local_name: "left as it was",
    on_a_copy: "left as it was",
    other_attribute: "another name",
    both_new: "both get a new Parameter",
    averaged: "not kept",
    heads_numbers: "not kept",
    frozen: "frozen",
    module_replaced: "replaced by the embedding",
    tied_and_returned: "the model is returned",
}


def plain(model):
    model.head.weight = model.embedding.token.weight


def by_register(model):
    del model.head.weight
    model.head.register_parameter("weight", model.embedding.token.weight)


def by_setattr(model):
    setattr(model.get_submodule("head"), "weight", model.get_parameter("embedding.token.weight"))  # noqa: B010


def with_a_new_head(model):
    V, C = model.embedding.token.weight.shape
    model.head = nn.Linear(C, V, bias=False)
    model.head.weight = model.embedding.token.weight


def by_table(model):
    model.head._parameters["weight"] = model.embedding.token._parameters["weight"]


TIE_RIGHT = [plain, by_register, by_setattr, with_a_new_head, by_table]
TIE_STUBS = [
    lambda model: 1,
    lambda model: model,
    lambda model: model.embedding.token.weight,
    lambda model: nn.init.zeros_(model.head.weight),
    lambda model: delattr(model, "head"),
    lambda model: setattr(model.head, "weight", model.blocks[0].attention.qkv.weight),
    lambda model: 1 / 0,
]

WRONG = {"count_parameters": COUNT_WRONG, "init_weights": INIT_WRONG, "L1Model": MODEL_WRONG, "tie_weights": TIE_WRONG}
RIGHT = {"count_parameters": COUNT_RIGHT, "init_weights": INIT_RIGHT, "L1Model": MODEL_RIGHT, "tie_weights": TIE_RIGHT}
STUBS = {"count_parameters": COUNT_STUBS, "init_weights": INIT_STUBS, "L1Model": MODEL_STUBS, "tie_weights": TIE_STUBS}


def seeds_of(exercise, candidate):
    """Return two or three of some seeds below twenty, others for each candidate.

    The first wrong answer on a seed runs the whole catalogue, so there are few seeds where a model is built each time.
    """
    seeds = {L1_MODEL: (0, 7, 13, 19), INIT_WEIGHTS: range(0, 20, 3), COUNT_PARAMETERS: (0,)}.get(exercise, (0, 6, 12))
    first = zlib.crc32(getattr(candidate, "__name__", "").encode()) % len(seeds)
    n_seeds = 3 if exercise is INIT_WEIGHTS else 2
    return {seeds[(first + n) % len(seeds)] for n in range(n_seeds)}


@pytest.mark.parametrize(("exercise", "candidate", "words"), cases(WRONG))
def test_a_mistake_is_rejected_and_named_first(exercise, candidate, words):
    assert_named_first(exercise, candidate, words, seeds_of(exercise, candidate))


@pytest.mark.parametrize(("exercise", "candidate"), cases(RIGHT))
def test_every_right_style_is_accepted(exercise, candidate):
    assert_accepted(exercise, candidate, seeds_of(exercise, candidate))


@pytest.mark.parametrize(("exercise", "candidate"), cases(STUBS))
def test_nothing_else_passes(exercise, candidate):
    assert_rejected(exercise, candidate, [0])


@pytest.mark.parametrize("name", WRONG)
def test_every_mistake_of_the_catalogue_has_a_wrong_answer_here(name):
    assert_all_told(checks.exercise(name), WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_the_number_of_threads_changes_nothing(name):
    some = dict(list(WRONG[name].items())[:6])
    assert_same_on_two_threads(checks.exercise(name), RIGHT[name][:2], some)


@pytest.mark.parametrize("exercise", [COUNT_PARAMETERS, INIT_WEIGHTS, L1_MODEL, TIE_WEIGHTS], ids=lambda e: e.name)
def test_the_reference_is_recognised(exercise):
    assert exercise.diagnose(exercise.reference).state == "given"


def test_a_blank_is_not_written_yet():
    class L1Model(nn.Module):
        def __init__(self, config):
            raise NotImplementedError("not written yet")

    def count_parameters(config):
        raise NotImplementedError("not written yet")

    assert L1_MODEL.diagnose(L1Model).state == "unwritten"
    assert COUNT_PARAMETERS.diagnose(count_parameters).state == "unwritten"
    assert INIT_WEIGHTS.diagnose(lambda model, config: count_parameters(config)).state == "unwritten"
    assert TIE_WEIGHTS.diagnose(count_parameters).state == "unwritten"


# Two mistakes together, and what the messages say.


def no_biases_and_no_norms(c):
    return no_linear_biases(c) - 4 * c.n_layers * c.n_embd - 2 * c.n_embd


class NoNormAndBias(Right):
    bias = True

    def read(self, x):
        return self.head(x)


def root_and_constant(model, config):
    init(model, config, std=0.02, residual=0.02 / math.sqrt(config.n_layers))


@pytest.mark.parametrize(
    ("name", "candidate", "words"),
    [
        ("count_parameters", no_biases_and_no_norms, ("biases of the linear layers", "norms are left out")),
        ("L1Model", NoNormAndBias, ("norm is missing", "has a bias")),
        ("init_weights", root_and_constant, ("root of n_layers", "init_std is ignored")),
    ],
)
def test_two_mistakes_together_are_both_named(name, candidate, words):
    verdict = checks.exercise(name).diagnose(candidate)
    assert len(verdict.mistakes) == 2 and all(any(w in m for m in verdict.mistakes) for w in words), verdict.text


def test_the_same_numbers_at_each_call_break_a_rule():
    for seed in range(5):
        text = INIT_WEIGHTS.diagnose(same_numbers_every_time, seed).text
        assert "a rule is broken: two calls must draw different numbers" in text


def test_a_wrong_std_is_shown_beside_the_right_one():
    text = INIT_WEIGHTS.diagnose(not_scaled).text
    assert "[the std of blocks.0.attention.proj.weight]" in text and "L1Model of 2 blocks" in text
    assert len(text.splitlines()) == 6


def test_a_part_of_another_name_is_shown_beside_the_right_one():
    text = L1_MODEL.diagnose(LmHead).text
    assert "expected  embedding, blocks, norm, head     got  embedding, blocks, norm, lm_head" in text


def test_the_gap_after_a_step_is_what_a_copy_shows():
    assert "two Parameters" in TIE_WEIGHTS.diagnose(clone).text


def test_a_check_leaves_its_models_as_they_are():
    for exercise, candidate in ((INIT_WEIGHTS, init), (TIE_WEIGHTS, plain)):
        assert exercise.diagnose(candidate).passed and exercise.diagnose(candidate).passed
        before = exercise._input(0, 0)["model"]
        exercise.diagnose(candidate)
        after = exercise._input(0, 0)["model"]
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
