"""AdamW: which parameters decay, which are left out, and the learning rate of every step."""

import pytest
import torch
from torch import nn

from semmae.models.mae import DecoderSpec, MaskedAutoencoder
from semmae.models.published_parts import PublishedPartLearner, PublishedPartsSpec
from semmae.models.vit import Encoder, EncoderSpec
from semmae.options.teacher import TeacherRecipe
from semmae.train.optimizer import adamw_warmup_cosine, clip_gradients, layer_decay_groups, set_weight_decay
from semmae.train.schedules import warmup_cosine
from semmae.train.teacher import TeacherTask

TINY = EncoderSpec(image_size=16, patch_size=8, width=24, depth=1, num_heads=3)


def configure(
    module: nn.Module, **changes: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.05, "total_steps": 12, "warmup_steps": 4}
    configured = adamw_warmup_cosine(module, **{**options, **changes})
    assert configured["lr_scheduler"]["interval"] == "step"
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


def decays(module: nn.Module) -> dict[str, float]:
    """The weight decay of every parameter that is optimised, by name."""
    optimizer, _ = configure(module)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = [
        (names[id(parameter)], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found)), "a parameter is optimised twice"
    return dict(found)


def test_an_autoencoder_decays_weights_and_tokens_as_the_release_does() -> None:
    """MAE leaves out what has one dimension: biases and norms."""
    model = MaskedAutoencoder(Encoder(TINY), DecoderSpec(24, 1, 3))

    found = decays(model)

    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    linear = {
        "encoder.vit.patch_embed.proj",
        "decoder_embed",
        "decoder_pred",
        *(f"encoder.vit.blocks.0.{layer}" for layer in block),
        *(f"decoder_blocks.0.{layer}" for layer in block),
    }
    tokens = {"mask_token", "encoder.vit.cls_token"}
    assert {name for name, decay in found.items() if decay} == {f"{layer}.weight" for layer in linear} | tokens
    assert {decay for decay in found.values() if decay} == {0.05}
    spared = {name for name, decay in found.items() if not decay}
    assert spared == {name for name, parameter in model.named_parameters() if parameter.ndim == 1}


def test_fixed_positions_are_not_optimised_and_all_else_is() -> None:
    model = MaskedAutoencoder(Encoder(TINY), DecoderSpec(24, 1, 3))

    left_out = dict(model.named_parameters()).keys() - decays(model).keys()

    assert left_out == {"encoder.vit.pos_embed", "decoder_pos_embed"}


def test_tokens_and_learned_positions_decay_in_pretraining_and_not_in_finetuning() -> None:
    vit = Encoder(TINY).vit
    vit.pos_embed.requires_grad_(True)

    assert {decays(vit)[name] for name in ("cls_token", "pos_embed")} == {0.05}
    groups = layer_decay_groups(vit, lr=0.1, weight_decay=0.05, layer_decay=1.0)
    spared = [parameter for group in groups if not group["weight_decay"] for parameter in group["params"]]
    for token in (vit.cls_token, vit.pos_embed):
        assert any(token is parameter for parameter in spared)


def test_a_teachers_mask_token_decays_as_ibots_does() -> None:
    task = TeacherTask(Encoder(TINY), TeacherRecipe(prototypes=8, head_width=8), lr=1e-3)

    assert decays(task)["mask_token"] == 0.05


def test_a_part_learner_decays_no_bias() -> None:
    """Its queries' and keys' biases have a dimension for the part: they look like matrices."""
    found = decays(
        PublishedPartLearner(PublishedPartsSpec(width=24, patch_size=8, num_parts=3, head_dim=8, decoder_width=16))
    )

    assert found["attention.query_weight"] == found["decoder.last.weight"] == 0.05
    assert found["background"] == 0.0
    assert {name: decay for name, decay in found.items() if name.endswith("bias") and decay} == {}


def test_a_step_without_gradient_shrinks_weights_and_leaves_biases() -> None:
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer, _ = configure(layer, warmup_steps=0)
    layer(torch.zeros(1, 3)).sum().mul(0.0).backward()

    optimizer.step()

    assert torch.allclose(layer.weight, weight * (1 - 0.1 * 0.05))
    assert torch.equal(layer.bias, bias)


def test_the_rate_follows_the_schedule_in_every_group() -> None:
    optimizer, scheduler = configure(nn.Linear(3, 2))

    for step in range(13):
        expected = 0.1 * warmup_cosine(step, total=12, warmup=4, start=1.0, end=0.0)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_a_decay_that_begins_at_nothing_rises_where_it_belongs() -> None:
    layer = nn.Linear(3, 2)
    optimizer, _ = configure(layer, weight_decay=0.0)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}

    set_weight_decay(optimizer, 0.3)

    decayed = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed == {id(layer.weight): 0.3, id(layer.bias): 0.0}


def test_each_gradient_is_limited_by_itself_or_all_together() -> None:
    """Of norms 30, 4 and 0.5, limit 3: DINO's loop scales the first two; together all are scaled alike."""

    def limited(each: bool) -> tuple[list[float], float]:
        parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
        for parameter, norm in zip(parameters, (30.0, 4.0, 0.5), strict=True):
            parameter.grad = torch.full_like(parameter, norm / parameter.numel() ** 0.5)
        unused = nn.Parameter(torch.zeros(3))
        whole = clip_gradients([*parameters, unused], 3.0, each)
        assert unused.grad is None
        return [float(own.grad.norm()) for own in parameters if own.grad is not None], float(whole)

    total = (30.0**2 + 4.0**2 + 0.5**2) ** 0.5
    for each, wanted in ((True, [3.0, 3.0, 0.5]), (False, [norm * 3.0 / total for norm in (30.0, 4.0, 0.5)])):
        norms, whole = limited(each)
        assert norms == pytest.approx(wanted, rel=1e-5) and whole == pytest.approx(total, rel=1e-5)
