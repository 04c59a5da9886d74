# SPDX-License-Identifier: Apache-2.0
"""Reading a few tokens is the full computation, forwards and backwards, and nothing of it is ever stale."""

import copy
import io

import pytest
import torch
from readout_methods import METHODS, method, only
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_llmboost.boosters import RESIDUALS, MLPControl, ResidualBooster, check_booster
from monai_llmboost.boosters.readout.numerics import squared_norms
from monai_llmboost.llm import BlockGeometry, DecoderBlock, DonorLayers, FrozenBlock, Layer, random_block, random_layer
from monai_llmboost.llm.donor.known import DONORS
from monai_llmboost.networks import ViT3D, ViViT

__all__ = ["method"]  # the fixture: each of the methods, whatever it costs
WIDE = BlockGeometry(width=96, mlp_width=128, num_heads=6, num_kv_heads=2, head_size=16)
NARROW = BlockGeometry(width=24, mlp_width=40, num_heads=4, num_kv_heads=4, head_size=8)
LLAMA_7B = BlockGeometry(width=4096, mlp_width=11008, num_heads=32, num_kv_heads=32, head_size=128)
PUBLISHED = {
    "in_channels": 1,
    "num_classes": 2,
    "img_size": 28,
    "patch_size": 4,
    "hidden_size": 1024,
    "mlp_dim": 1024,
    "num_layers": 8,
    "num_heads": 8,
    "head_size": 64,
}
CHANNELS = 32
TOKENS = {
    "random": lambda x: x,
    "large": lambda x: 1e3 * x,
    "small": lambda x: 1e-3 * x,
    "large common mean": lambda x: x + 100 * torch.randn(1, 1, x.shape[-1]),
    "small tokens beside a large mean": lambda x: torch.cat(
        (x[:, :2], x[:, 2:] + 300 * torch.randn(1, 1, x.shape[-1])), 1
    ),
    "one large token": lambda x: torch.cat((x[:, :-1], 300 * x[:, -1:]), dim=1),
}
script_warnings = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")


@pytest.fixture
def visual(monkeypatch):
    only("visual", monkeypatch)


def sharp(block):
    """Queries grown so that attention picks single tokens, as trained blocks do."""
    block.layer.query.weight.mul_(6)
    return block


def output_and_gradients(booster, x, read=None, keep=2):
    """What the first ``keep`` outputs are and what flows back from them, the other tokens' gradient apart."""
    x = x.detach().clone().requires_grad_()
    booster.zero_grad()
    z = booster(x)[:, :keep] if read is None else booster(x, read)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    (z.float() * direction).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in booster.named_parameters()}
    return {"z": z.detach(), "read tokens": x.grad[:, :keep], "other tokens": x.grad[:, keep:], **gradients}


def assert_close(got, expected, tolerance):
    for name, value in expected.items():
        error = (got[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", RESIDUALS)
def test_equals_the_full_computation_in_float32(method, kind, tokens):
    for geometry in (WIDE, NARROW):
        torch.manual_seed(0)
        booster = ResidualBooster(CHANNELS, sharp(random_block(geometry)), kind, start="published")
        x = TOKENS[tokens](torch.randn(3, 20, CHANNELS))
        expected = output_and_gradients(booster, x)
        assert_close(output_and_gradients(booster, x, read=2), expected, 1e-5)


OTHER_LAYERS = {
    "llama": {},
    "layer norm": {"norm": "layer", "qkv_bias": True, "gated": False, "mlp_bias": True},
    "head by head normed keys": {"qk_norm": "head"},
    "normed keys, no norm before": {"qk_norm": "all", "pre_norm": False, "post_norm": True},
}


KINDS = [*((kind, "llama") for kind in RESIDUALS), *(("inner", layer) for layer in list(OTHER_LAYERS)[1:])]
IN_TURN = [
    (*kind, tokens, list(METHODS)[(i + j) % len(METHODS)])
    for i, kind in enumerate(KINDS) for j, tokens in enumerate(TOKENS)
]  # fmt: skip


@pytest.mark.parametrize(("kind", "layer", "tokens", "method"), IN_TURN, indirect=["method"])
def test_equals_the_full_computation_in_bfloat16(method, kind, tokens, layer):
    """Autocast, the block kept in bfloat16 as on a GPU; against the full computation in float32."""
    torch.manual_seed(0)
    booster = ResidualBooster(
        256, random_block(BlockGeometry(512, 768, 8, 4, 64, **OTHER_LAYERS[layer])), kind, start="published"
    )
    narrow = copy.deepcopy(booster)
    narrow.block.to(torch.bfloat16)
    booster.block.load_state_dict(narrow.block.state_dict())
    for buffer, rounded in zip(booster.block.buffers(), narrow.block.buffers()):
        buffer.copy_(rounded)
    x = TOKENS[tokens](torch.randn(3, 60, 256))
    with torch.autocast("cpu", torch.bfloat16):
        got = output_and_gradients(narrow, x, read=2)
        expected = output_and_gradients(narrow, x)
    if kind != "projected":  # rounding moves some of its values over the kink of the LeakyReLU, by any method
        expected = output_and_gradients(booster, x)
    assert_close(got, expected, 2e-2 if layer == "llama" else 2.5e-2)


def test_is_closer_to_the_truth_than_the_full_computation():
    """The badly scaled case is where centring pays: both against float64."""
    torch.manual_seed(0)
    booster = ResidualBooster(CHANNELS, random_block(WIDE), start="published")
    x = TOKENS["large common mean"](torch.randn(3, 200, CHANNELS))
    exact = output_and_gradients(copy.deepcopy(booster).double(), x.double())

    def worst(got):
        return max(float((got[n].double() - v).abs().max() / v.abs().max()) for n, v in exact.items())

    assert worst(output_and_gradients(booster, x, read=2)) < worst(output_and_gradients(booster, x))


@pytest.mark.parametrize("read", [1, 3, 20])
def test_any_number_of_tokens(method, read):
    booster, x = ResidualBooster(CHANNELS, random_block(WIDE), start="published"), torch.randn(2, 20, CHANNELS)
    torch.testing.assert_close(booster(x, read), booster(x)[:, :read])


def test_other_blocks_are_read_too():
    class Mixer(nn.Module):
        width = 24

        def forward(self, h):
            return h + h.mean(dim=1, keepdim=True)

    x = torch.randn(2, 7, CHANNELS)
    for block in (Mixer(), MLPControl(24)):
        booster = ResidualBooster(CHANNELS, block, start="published")
        torch.testing.assert_close(booster(x, 2), booster(x)[:, :2])


class Shifted(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias) + 1


def adapt(booster, name):
    old = booster.get_submodule(name)
    new = Shifted(old.in_features, old.out_features, bias=False)
    new.load_state_dict({"weight": old.weight})
    booster.set_submodule(name, new)


def with_bias(booster):
    weight = booster.encode.weight
    booster.encode = nn.Linear(CHANNELS, weight.shape[0])
    booster.encode.weight = weight


def hook(booster, name):
    booster.get_submodule(name).register_forward_hook(lambda module, inputs, output: output + 1)


def other_norm(booster):
    booster.block.layer.attention_norm = nn.LayerNorm(WIDE.width)


ADAPTERS = {
    "encode": lambda b: adapt(b, "encode"),
    "value": lambda b: adapt(b, "block.layer.value"),
    "a bias": with_bias,
    "a hook on encode": lambda b: hook(b, "encode"),
    "a hook on value": lambda b: hook(b, "block.layer.value"),
    "a hook on the norm": lambda b: hook(b, "block.layer.attention_norm"),
    "a hook on the keys": lambda b: b.block.layer.key_norm.register_forward_hook(lambda _, __, output: 3 * output),
    "normed keys": lambda b: setattr(b.block.layer, "key_norm", nn.RMSNorm(WIDE.num_kv_heads * WIDE.head_size)),
    "a hook on the layer": lambda b: hook(b, "block.layer"),
    "a hook on the block": lambda b: hook(b, "block"),
    "another norm": other_norm,
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_is_not_passed_over(method, adapter):
    torch.manual_seed(0)
    booster, x = ResidualBooster(CHANNELS, random_block(WIDE), start="published"), torch.randn(2, 20, CHANNELS)
    before = booster(x, 1)
    ADAPTERS[adapter](booster)
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])
    assert not torch.allclose(booster(x, 1), before, atol=1e-4)


class Merged(nn.Module):
    """A map of another library: a property gives the weight that its forward uses."""

    is_linear_map = True

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("base", linear.weight.detach())
        self.added = nn.Parameter(0.1 * torch.randn(linear.weight.shape))
        self.bias = None

    @property
    def weight(self):
        return self.base + self.added

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class MergedAndShifted(Merged):
    """It inherits the declaration, and does something else."""

    def forward(self, x):
        return super().forward(x) + 1


class OfBaseWeight(Merged):
    """As PEFT's: its attribute `weight` is that of the frozen map."""

    is_linear_map = False

    @property
    def weight(self):
        return self.base

    def forward(self, x):
        return nn.functional.linear(x, self.base + self.added)


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Renamed(FrozenBlock):
    """A subclass that computes what its base does."""

    def extra_repr(self):
        return "mine"


def set_forward(booster):
    key = booster.block.layer.key
    key.forward = lambda x, forward=key.forward: forward(x).flip(-1)


def swap(booster, kind):
    booster.block.layer.value = kind(booster.block.layer.value)


def parametrized(booster):
    torch.nn.utils.parametrize.register_parametrization(booster.encode, "weight", Doubling())


def biased_keys(booster):
    key = nn.Linear(WIDE.width, WIDE.num_kv_heads * WIDE.head_size)
    booster.block.layer.key = key.requires_grad_(False)  # a trained bias would need a place in the graph


LATER = {  # what is put in place after the booster was made, and whether the block is still taken apart
    "a declared map": (lambda b: swap(b, Merged), True),
    "a parametrized map": (parametrized, True),
    "a declared map with another forward": (lambda b: swap(b, MergedAndShifted), False),
    "a map whose weight is not all": (lambda b: swap(b, OfBaseWeight), False),
    "a forward of its own": (set_forward, False),
    "another block of a subclass": (lambda b: setattr(b, "block", Renamed(random_layer(WIDE, 7))), True),
    "another map of the same class": (biased_keys, True),
    "a new norm of another eps": (lambda b: setattr(b.block.layer, "attention_norm", nn.RMSNorm(96, eps=0.5)), False),
}


@pytest.mark.parametrize("later", LATER)
def test_what_is_put_in_place_later_is_computed(method, later):
    change, apart = LATER[later]
    torch.manual_seed(0)
    booster, x = ResidualBooster(CHANNELS, random_block(WIDE), start="published"), torch.randn(2, 20, CHANNELS)
    before = booster(x, 1)
    change(booster)
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])
    assert not torch.allclose(booster(x, 1), before, atol=1e-4)
    assert booster.takes_apart == apart
    torch.testing.assert_close(copy.deepcopy(booster)(x, 1), booster(x, 1))


@script_warnings
@pytest.mark.parametrize("part", ["encode", "block.layer.value"])
def test_what_was_put_in_place_is_scripted(visual, part):
    booster, x = ResidualBooster(CHANNELS, random_block(WIDE), start="published"), torch.randn(2, 20, CHANNELS)
    adapt(booster, part)
    torch.testing.assert_close(torch.jit.script(booster)(x, 1), booster(x)[:, :1])


def test_a_subclass_that_computes_the_same_is_taken_apart(visual):
    booster, x = ResidualBooster(CHANNELS, Renamed(random_layer(WIDE)), start="published"), torch.randn(2, 20, CHANNELS)
    assert booster.describe_readout(2, 20, 1) == "no keys and values, visual tokens"
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])


def test_a_block_of_any_class_that_offers_its_parts_is_taken_apart(visual):
    """The contract is what counts: here it is met by delegation."""

    class Other(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside
            self.width = inside.width
            self.attention_form = inside.attention_form
            self.attention_tensors, self.finish = inside.attention_tensors, inside.finish
            self.attention_parts, self.is_intact = inside.attention_parts, inside.is_intact

        def forward(self, h, read=None):
            return self.inside(h, read)

    booster, x = ResidualBooster(CHANNELS, Other(random_block(WIDE)), start="published"), torch.randn(2, 20, CHANNELS)
    assert booster.describe_readout(2, 20, 1) == "no keys and values, visual tokens"
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])


def test_a_block_of_another_class_is_run_as_it_is(method):
    class Doubled(FrozenBlock):
        def forward(self, h, read=None):
            return 2 * super().forward(h, read)

    booster, x = ResidualBooster(CHANNELS, Doubled(random_layer(WIDE)), start="published"), torch.randn(2, 20, CHANNELS)
    torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tokens", TOKENS)
def test_float16_with_a_scaled_loss(method, tokens, inside):
    """Its range is narrow. Where the full computation does not leave it, reading few tokens does not either."""
    torch.manual_seed(0)
    booster = ResidualBooster(256, sharp(random_block(BlockGeometry(512, 768, 8, 4, 64))), start="published")
    x = TOKENS[tokens](torch.randn(3, 60, 256))
    expected = output_and_gradients(booster, x)

    def errors(read):
        booster.zero_grad()
        case = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16):
            z = booster(case, read)[:, :2]
            loss = 2**10 * (z.float() * torch.randn(z.shape, generator=torch.Generator().manual_seed(5))).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        got = {name: parameter.grad / 2**10 for name, parameter in booster.named_parameters()}
        got |= {"z": z.detach(), "read tokens": case.grad[:, :2] / 2**10, "other tokens": case.grad[:, 2:] / 2**10}
        return {name: float((got[name] - value).abs().max() / value.abs().max()) for name, value in expected.items()}

    full = errors(None)
    for name, error in errors(2).items():
        assert error <= max(2e-2, 2 * full[name]) or full[name] != full[name], f"{name}: {error:.1e}, {full[name]:.1e}"


def test_gradients_of_gradients():
    torch.manual_seed(0)
    d, encode = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    mean = torch.randn(2, 1, 4, dtype=torch.float64)

    def norms(d, encode):
        gram = (encode.t() @ encode).detach()
        return squared_norms(d, mean, encode, gram)

    arguments = d.requires_grad_(), encode.requires_grad_()
    assert torch.autograd.gradcheck(norms, arguments)
    assert torch.autograd.gradgradcheck(norms, arguments)


def test_float64_keeps_its_digits(method):
    booster, x = (
        ResidualBooster(CHANNELS, random_block(WIDE), start="published").double(),
        torch.randn(2, 20, CHANNELS).double(),
    )
    assert_close(output_and_gradients(booster, x, read=2), output_and_gradients(booster, x), 1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_single_cases(method, training):
    """By torch.func, as in training with differential privacy."""
    booster, x = (
        ResidualBooster(CHANNELS, random_block(WIDE), start="published").train(training),
        torch.randn(3, 20, CHANNELS),
    )
    weights = dict(booster.named_parameters())

    def loss(weights, case, read):
        z = torch.func.functional_call(booster, weights, (case[None],), {"read": read})
        return z[:, :2].square().sum()

    single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None))
    assert_close(single(weights, x, 2), single(weights, x, None), 1e-5)


@pytest.mark.parametrize(
    ("sizes", "cheapest"),
    [
        ({}, "visual"),
        ({"batch": 1}, "encoded"),
        ({"batch": 1, "gram_is_kept": True}, "visual"),
        ({"tokens": 3, "num_kv_heads": 8}, "keys"),
        ({"read": 344}, "keys"),
        ({"width": 576, "num_heads": 9, "num_kv_heads": 3, "head_size": 64}, "encoded"),
    ],
)
def test_the_cheapest_method(sizes, cheapest):
    published = {"batch": 32, "tokens": 344, "read": 1, "channels": 1024, "width": 4096, "num_heads": 32}
    defaults = {**published, "num_kv_heads": 32, "head_size": 128, "gram_is_kept": False}
    sizes = {**defaults, **sizes}
    geometry = BlockGeometry(
        width=sizes["width"], mlp_width=8, **{key: sizes[key] for key in ("num_heads", "num_kv_heads", "head_size")}
    )
    with torch.device("meta"):
        form = DecoderBlock(geometry).attention_form
    methods = {name: kinds[0](form, sizes["channels"], sizes["width"]) for name, kinds in METHODS.items()}
    methods["visual"].train(not sizes["gram_is_kept"])
    costs = {name: kind.cost(sizes["batch"], sizes["tokens"], sizes["read"]) for name, kind in methods.items()}
    assert min(costs, key=costs.get) == cheapest


def flops(network, batch, backwards=False):
    x = torch.empty(batch, 1, 28, 28, 28, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = network(x)
        if backwards:
            out.sum().backward()
    return counter.get_total_flops() / batch


@pytest.fixture(scope="module")
def published():
    """ViT3D of the published size, plain, with LLaMA-7B's block, and with that and mean pooling; without values."""
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in LLAMA_7B.tensor_shapes.items()}
        booster = ResidualBooster(
            1024, FrozenBlock(DonorLayers((Layer(tensors, LLAMA_7B),), "LLaMA-7B")), start="published"
        )
        return ViT3D(**PUBLISHED), ViT3D(**PUBLISHED, booster=booster), ViT3D(**PUBLISHED, booster=booster, pool="mean")


def test_flops_of_the_published_size(published):
    plain, boosted, full = published
    with torch.no_grad():
        boosted.eval()(torch.empty(1, 1, 28, 28, 28, device="meta"))  # makes the Gram matrix that is kept
        assert flops(boosted, 8) <= 1.08 * flops(plain.eval(), 8)
        assert flops(full.eval(), 8) > 6 * flops(plain, 8)
    assert flops(boosted.train(), 32, backwards=True) <= 1.09 * flops(plain.train(), 32, backwards=True)


def test_cost_is_linear_in_the_tokens(published):
    booster = published[1].booster.eval()
    counts = {}
    with torch.no_grad():
        booster(torch.empty(1, 1000, 1024, device="meta"), 1)  # makes the Gram matrix that is kept
        for tokens in (1000, 2000, 4000):
            with FlopCounterMode(display=False) as counter:
                booster(torch.empty(1, tokens, 1024, device="meta"), 1)
            counts[tokens] = counter.get_total_flops()
    assert counts[4000] - counts[2000] == 2 * (counts[2000] - counts[1000])


class FullBooster(nn.Module):
    """A booster that cannot be asked for a few tokens."""

    def __init__(self, booster):
        super().__init__()
        self.inside = booster

    def forward(self, x):
        return self.inside(x)


@pytest.mark.parametrize("kind", [ViT3D, ViViT])
def test_networks_read_the_cls_token_alone(method, kind):
    torch.manual_seed(0)
    sizes = {"in_channels": 1, "num_classes": 3, "img_size": 16, "patch_size": 4, "hidden_size": 24, "num_heads": 3}
    booster = ResidualBooster(24, random_block(WIDE), start="published")
    network = kind(**sizes, booster=booster)
    full = copy.deepcopy(network)
    full.booster, full.reads_cls = FullBooster(copy.deepcopy(booster)), False
    x = torch.randn(2, 1, 16, 16, 16)
    for one in (network, full):
        one(x).square().sum().backward()
    assert_close({"z": network(x)}, {"z": full(x)}, 1e-5)
    theirs = {name.replace("inside.", ""): parameter.grad for name, parameter in full.named_parameters()}
    assert_close({name: p.grad for name, p in network.named_parameters()}, theirs, 1e-5)
    shapes = []
    network.booster.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    network(x)
    assert shapes == [(2, 1, 24)]


CHANGES = {
    "an optimizer's step": lambda b: torch.optim.SGD(b.parameters(), lr=0.1).step(),
    "in place": lambda b: b.encode.weight.data.mul_(2),
    "one value": lambda b: b.encode.weight.data[0, 0].add_(1),
    "replaced": lambda b: setattr(b.encode, "weight", nn.Parameter(torch.randn(96, CHANNELS))),
    "a checkpoint": lambda b: b.load_state_dict(
        ResidualBooster(CHANNELS, random_block(WIDE), start="published").state_dict()
    ),
    "another dtype": lambda b: b.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_is_never_stale(visual, change):
    booster = ResidualBooster(CHANNELS, random_block(WIDE), start="published").eval()
    x = torch.randn(2, 20, CHANNELS)
    booster(x, 1).sum().backward()
    with torch.no_grad():
        booster(x, 1)
        CHANGES[change](booster)
        x = x.to(booster.encode.weight.dtype)
        torch.testing.assert_close(booster(x, 1), booster(x)[:, :1])


def test_what_is_kept(visual):
    booster = ResidualBooster(CHANNELS, random_block(WIDE), start="published").eval()
    x = torch.randn(2, 20, CHANNELS)
    names = set(booster.state_dict())
    with torch.inference_mode():
        booster(x, 1)
    _, product = booster.readout.methods[1].gram.kept
    assert product.shape == (CHANNELS, CHANNELS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        booster(x, 1)
    assert booster.readout.methods[1].gram.kept[1] is product, "used again"
    x.requires_grad_()
    booster(x, 1).sum().backward()  # what inference mode made is good for gradients
    assert booster.readout.methods[1].gram.kept[1] is product and x.grad is not None
    assert booster.encode.weight.grad is not None, "fine-tuning in eval() reaches E"
    assert set(booster.state_dict()) == names
    assert copy.deepcopy(booster).readout.methods[1].gram.kept is None
    file = io.BytesIO()
    torch.save(booster.readout.methods[1].gram, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).kept is None
    booster.readout.methods[1].gram.kept = None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        booster(x, 1)
    assert torch.equal(booster.readout.methods[1].gram.kept[1], product), "made in float32 under autocast too"
    booster.train()
    assert booster.readout.methods[1].gram.kept is None
    booster(x, 1)
    assert booster.readout.methods[1].gram.kept is None, "nothing is kept in training"


@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(method, training):
    _check_compiled(2, training)


@pytest.mark.parametrize("training", [False, True])
def test_the_full_computation_compiles_without_a_graph_break(training):
    _check_compiled(None, training)


def _check_compiled(read, training):
    torch.manual_seed(0)
    booster = ResidualBooster(CHANNELS, random_block(WIDE), start="published").train(training)
    compiled = torch.compile(booster, backend="aot_eager" if training else "eager", fullgraph=True)
    x = torch.randn(3, 20, CHANNELS)
    assert_close(
        output_and_gradients(compiled, x, read),
        {f"_orig_mod.{n}" if "weight" in n else n: v for n, v in output_and_gradients(booster, x, read).items()},
        1e-5,
    )
    with torch.no_grad():
        booster.encode.weight.mul_(2)
        torch.testing.assert_close(compiled(x, read), booster(x, read))
    torch.compiler.reset()


@pytest.mark.parametrize("donor", DONORS, ids=lambda donor: donor.repository)
def test_nearly_free_with_every_donor_of_the_list(donor, published):
    """Operations per volume at the published size, training in batches of 32."""
    plain = published[0]
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in donor.geometry.tensor_shapes.items()}
        block = FrozenBlock(DonorLayers((Layer(tensors, donor.geometry),), "counted"))
        network = ViT3D(**PUBLISHED, booster=ResidualBooster(1024, block, start="published"))
    ratio = flops(network, 32, backwards=True) / flops(plain, 32, backwards=True)
    assert 1 < ratio < (1.17 if donor.repository == "allenai/OLMo-2-1124-7B" else 1.09)


@script_warnings
@pytest.mark.parametrize(
    ("geometry", "tokens", "cheapest"), [(WIDE, 4, "keys"), (NARROW, 40, "encoded"), (WIDE, 400, "visual")]
)
def test_scripted_boosters_train(geometry, tokens, cheapest):
    torch.manual_seed(0)
    booster = ResidualBooster(CHANNELS, random_block(geometry), start="published")
    assert booster.readout.cheapest(3, tokens, 2) == list(METHODS).index(cheapest) - 1
    scripted = torch.jit.script(copy.deepcopy(booster))
    x = torch.randn(3, tokens, CHANNELS)
    for _ in range(3):  # the first calls profile, later ones are optimised
        got = output_and_gradients(scripted, x, 2)
    assert_close(got, output_and_gradients(booster, x, 2), 1e-5)


class ReadOne(nn.Module):
    def __init__(self, booster):
        super().__init__()
        self.booster = booster

    def forward(self, x):
        return self.booster(x, 1)


@script_warnings
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_booster_follows_its_weights(visual):
    network = ReadOne(ResidualBooster(CHANNELS, random_block(WIDE), start="published")).eval()
    x = torch.randn(2, 20, CHANNELS)
    with torch.no_grad():
        network(x)
        traced = torch.jit.trace(network, x)
        network.booster.encode.weight.mul_(2)
        torch.testing.assert_close(traced(x), network.booster(x)[:, :1])


@pytest.mark.parametrize("read", [None, 2])
def test_checkpointing_changes_memory_only(read):
    torch.manual_seed(0)
    booster = ResidualBooster(CHANNELS, random_block(WIDE), start="published")
    lean = ResidualBooster(CHANNELS, random_block(WIDE), use_checkpoint=True, start="published")
    lean.load_state_dict(booster.state_dict())
    check_booster(lean, CHANNELS)
    x = torch.randn(2, 20, CHANNELS)
    assert_close(output_and_gradients(lean, x, read), output_and_gradients(booster, x, read), 1e-6)

    def saved(module):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            module(x, read)
        return sum(sizes)

    if read is None:
        assert saved(lean) < 0.5 * saved(booster)
