"""The same encoder with new weights: of the same kind in everything, and of nothing that it had learned."""

import copy

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semmae.models.fresh import fresh_like
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import peculiarities, wrap_vit

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
ROTARY = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "global_pool": "token", "init_values": 0.1}
KINDS: dict[str, nn.Module] = {
    "registers": VisionTransformer(**SIZES, dynamic_img_size=True, reg_tokens=3, no_embed_class=True),
    "layer scale": VisionTransformer(**SIZES, dynamic_img_size=True, init_values=1e-5, qk_norm=True),
    "no biases": VisionTransformer(**SIZES, dynamic_img_size=True, qkv_bias=False, pre_norm=True),
    "rotary": Eva(**SIZES, dynamic_img_size=True, **ROTARY),
    "learned rotary": Eva(**SIZES, dynamic_img_size=True, **ROTARY, rope_type="mixed"),
}


def trained(kind: str) -> Encoder:
    """As if it had learned: every parameter is somewhere else than it begins."""
    encoder = wrap_vit(copy.deepcopy(KINDS[kind]), MEAN, STD).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter)).add_(3)
    return encoder


@pytest.mark.parametrize("kind", KINDS)
def test_the_architecture_stays_and_all_weights_are_new(kind: str) -> None:
    encoder = trained(kind)
    before = copy.deepcopy(encoder.state_dict())
    fresh = fresh_like(encoder, seed=3)
    assert peculiarities(fresh) == peculiarities(encoder) != []
    assert fresh.spec == encoder.spec and type(fresh.vit) is type(encoder.vit) and not fresh.training
    shapes = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in before.items()}
    learned = {name for name, _ in encoder.named_parameters()}
    assert [name for name in learned if torch.isclose(fresh.state_dict()[name], before[name]).any()] == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items()), "it is not changed"
    again, other = fresh_like(encoder, seed=3), fresh_like(encoder, seed=4)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    assert not torch.equal(fresh.vit.blocks[0].attn.qkv.weight, other.vit.blocks[0].attn.qkv.weight)
    assert fresh(torch.randn(1, 3, 32, 32)).patches.isfinite().all()


def test_it_begins_as_published() -> None:
    vit = fresh_like(trained("layer scale"), seed=0).vit
    assert torch.equal(vit.blocks[1].ls2.gamma, torch.full((24,), 1e-5))
    assert vit.blocks[0].attn.q_norm.weight.eq(1).all() and vit.blocks[0].mlp.fc1.bias.eq(0).all()
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    assert vit.blocks[0].mlp.fc1.weight.abs().max().item() == pytest.approx((6 / (24 + 96)) ** 0.5, rel=0.02)
    eva = fresh_like(trained("rotary"), seed=0).vit
    assert eva.blocks[0].gamma_1.eq(1e-5).all() and eva.blocks[0].attn.q_bias.eq(0).all()


def test_a_plain_one_is_as_it_always_was() -> None:
    """Figures are written down that rest on these very weights."""
    spec = EncoderSpec(32, 8, 24, 2, 2)
    torch.manual_seed(7)
    expected = Encoder(spec).state_dict()
    plain = Encoder(spec, VisionTransformer(**SIZES, dynamic_img_size=True))
    state = torch.get_rng_state()
    found = fresh_like(plain, seed=7).state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert torch.equal(torch.get_rng_state(), state)


def test_the_norms_keep_their_epsilon() -> None:
    encoder = Encoder(EncoderSpec(32, 8, 24, 2, 2))
    for layer in encoder.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-12
    assert {layer.eps for layer in fresh_like(encoder, 0).modules() if isinstance(layer, nn.LayerNorm)} == {1e-12}
