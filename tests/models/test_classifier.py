"""The classifier, against the formula, timm's own models, and itself with activations computed again."""

import timm
import torch
from timm.layers.drop import DropPath
from torch import nn

from semmae.models.classifier import HEAD_STD, Classifier, set_drop_path, without_head
from semmae.models.vit import Encoder, EncoderSpec
from semmae.models.weights import wrap_vit

SPEC = EncoderSpec(32, 8, 48, 3, 3)


def trained(pooling: str, classes: int = 5) -> Classifier:
    """One whose weights all do something."""
    classifier = Classifier(Encoder(SPEC), classes, pooling)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    return classifier.eval()


@torch.no_grad()
def test_mean_pooling_norms_the_mean_and_the_class_token_is_normed_before() -> None:
    images = torch.randn(2, 3, 32, 32)
    for pooling, norm in (("mean", "fc_norm"), ("cls", "norm")):
        classifier = trained(pooling)
        vit, tokens = classifier.vit, []
        vit.blocks[-1].register_forward_hook(lambda _, __, out, seen=tokens: seen.append(out))
        logits = classifier(images)
        pooled = tokens[0][:, 1:].mean(1) if pooling == "mean" else tokens[0][:, 0]
        centred = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
        own = getattr(vit, norm)
        expected = (centred * own.weight + own.bias) @ vit.head.weight.T + vit.head.bias
        assert torch.allclose(logits, expected, atol=1e-4)
        assert torch.allclose(logits, vit(images), atol=1e-5)


def test_norm_and_head_begin_as_in_mae() -> None:
    encoder = Encoder(EncoderSpec(32, 8, 384, 1, 6))
    nn.init.normal_(encoder.vit.norm.weight)
    classifier = Classifier(encoder, 200)
    head = classifier.vit.head
    assert abs(head.weight.std().item() / HEAD_STD - 1) < 0.05 and HEAD_STD == 2e-5 and not head.bias.any()
    assert (classifier.vit.fc_norm.weight == 1).all() and not classifier.vit.fc_norm.bias.any()
    assert "norm.weight" not in classifier.vit.state_dict()


@torch.no_grad()
def test_a_norm_that_was_trained_behind_the_pooling_is_kept() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=3, img_size=32, global_pool="avg"
    )
    nn.init.normal_(model.fc_norm.weight)
    before = model.fc_norm.weight.clone()
    classifier = Classifier(wrap_vit(model, SPEC.mean, SPEC.std), 4)
    assert torch.equal(classifier.vit.fc_norm.weight, before)


def test_the_encoder_comes_back_without_head() -> None:
    classifier = trained("cls")
    encoder = without_head(classifier)
    assert "head.weight" not in encoder.vit.state_dict()
    assert encoder(torch.randn(1, 3, 32, 32)).cls.shape == (1, 48)


def test_drop_path_grows_as_in_timm() -> None:
    reference = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=48, depth=3, num_heads=3, img_size=32, drop_path_rate=0.3
    )
    classifier = trained("mean")
    set_drop_path(classifier.vit, 0.3)

    def rates(vit: nn.Module) -> list[tuple[str, float]]:
        return [(name, layer.drop_prob) for name, layer in vit.named_modules() if isinstance(layer, DropPath)]

    assert rates(classifier.vit) == rates(reference) and len(rates(reference)) == 4  # none in the first block
    set_drop_path(classifier.vit, 0.0)
    assert rates(classifier.vit) == []


def test_activations_computed_again_give_the_same_gradients() -> None:
    classifier = trained("mean").train()
    set_drop_path(classifier.vit, 0.5)
    images, gradients = torch.randn(4, 3, 32, 32), []
    for checkpointing in (False, True):
        classifier.checkpointing = checkpointing
        classifier.zero_grad()
        torch.manual_seed(7)  # of drop path: drawn anew, and the same
        classifier(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in classifier.parameters() if parameter.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_an_encoder_resized_once_is_that_which_interpolates_every_time() -> None:
    encoder = Encoder(SPEC).eval()
    images = torch.randn(1, 3, 48, 48)
    before = encoder(images)
    encoder.set_image_size(48)
    assert encoder.spec.image_size == 48 and encoder.vit.pos_embed.shape[1] == 37
    assert torch.allclose(encoder(images).patches, before.patches, atol=1e-5)
