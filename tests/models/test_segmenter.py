"""The segmentation network: which tokens it reads, what of it is trained, its pyramid, its file."""

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from semmae.formats.folders import read_segmenter, save_segmenter
from semmae.models.segmenter import Segmenter, SegmenterSpec, UPerNetHead, pyramid_scales, smallest_image, usual_blocks
from semmae.models.vit import Encoder, EncoderSpec

CLASSES = ("sky", "tree", "road")


def segmenter(
    head: str = "upernet", patch: int = 8, side: int = 4, depth: int = 5, auxiliary: bool = True
) -> Segmenter:
    encoder = Encoder(EncoderSpec(side * patch, patch, width=24, depth=depth, num_heads=2))
    return Segmenter(encoder, SegmenterSpec(CLASSES, head, (0, 1, 2, 3), 8, auxiliary))  # type: ignore[arg-type]


def test_blocks_read_of_encoders_of_other_depths() -> None:
    assert usual_blocks(12) == (3, 5, 7, 11)  # BEiT-B, MAE-B in mmsegmentation
    assert usual_blocks(24) == (7, 11, 15, 23)  # BEiT-L
    for depth in range(4, 40):
        blocks = usual_blocks(depth)
        assert blocks[-1] == depth - 1 and list(blocks) == sorted(set(blocks)) and blocks[0] >= 0


def test_strides_of_the_pyramid() -> None:
    assert pyramid_scales(16) == [4, 2, 1, 0.5]  # strides of 4, 8, 16, 32 pixels
    assert pyramid_scales(8) == [2, 1, 0.5, 0.25]  # the same
    assert pyramid_scales(14) == [4, 2, 1, 0.5]
    assert pyramid_scales(32) == [4, 2, 1, 0.5]
    assert pyramid_scales(4) == [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("patch", [4, 8, 16])
def test_levels_have_their_strides(patch: int) -> None:
    head = UPerNetHead(8, patch, 3, 8).eval()
    side = 128
    levels = head.levels([torch.randn(1, 8, side // patch, side // patch)] * 4)
    assert [side // level.shape[-1] for level in levels] == [4, 8, 16, 32]


def test_tokens_are_those_that_timm_returns() -> None:
    net = segmenter(side=5).eval()
    images = torch.randn(2, 3, 40, 40)
    assert isinstance(net.encoder.vit, VisionTransformer)
    expected = net.encoder.vit.forward_intermediates(images, indices=[0, 1, 2, 3], intermediates_only=True)
    for found, wanted in zip(net._block_maps(images), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_positions_of_another_size_are_those_of_the_encoder() -> None:
    """Interpolated once (set_image_size) or at every pass (dynamic size), the tokens are the same."""
    net = segmenter(side=4).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        dynamic = net(images)
        net.encoder.set_image_size(64)
        torch.testing.assert_close(net(images), dynamic, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (32, 64)])
def test_logits_are_for_every_pixel(shape: tuple[int, int]) -> None:
    """Of images of any shape; what lies in one corner is predicted there: the maps are not transposed."""
    net = segmenter("linear").eval()
    images = torch.zeros(1, 3, *shape)
    images[..., :8, -8:] = 5
    with torch.no_grad():
        changed = (net(images) - net(torch.zeros_like(images))).abs().sum(1)[0]
    top, left = divmod(int(changed.argmax()), shape[1])
    assert net(images).shape == (1, 3, *shape) and top < 12 and left >= shape[1] - 12


@pytest.mark.parametrize(("head", "auxiliary"), [("upernet", True), ("upernet", False), ("linear", False)])
def test_every_weight_that_is_trained_gets_a_gradient(head: str, auxiliary: bool) -> None:
    """Or several processes would wait for one; and no other does."""
    net = segmenter(head, auxiliary=auxiliary).train()
    scores = net.scores(torch.randn(2, 3, 32, 32))
    assert (scores.auxiliary is not None) == auxiliary
    (scores.main.sum() + (0 if scores.auxiliary is None else scores.auxiliary.sum())).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    encoder = {name for name, parameter in net.encoder.vit.named_parameters() if parameter.requires_grad}
    if head == "linear":
        assert not encoder
    else:  # all but what lies behind the last block that is read
        assert {"pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.3.mlp.fc2.weight"} <= encoder
        assert not [name for name in encoder if name.startswith(("blocks.4", "norm"))]


def test_a_frozen_encoder_stays_in_eval_mode() -> None:
    net = segmenter("linear").train()
    assert net.head.training and not net.encoder.training and not net.encoder.vit.blocks.training
    assert segmenter("upernet").train().encoder.training


def test_recomputed_activations_give_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = segmenter().train()
        net.checkpointing = checkpointing
        torch.manual_seed(1)
        net.scores(torch.ones(2, 3, 32, 32)).main.square().sum().backward()
        grad = net.encoder.vit.patch_embed.proj.weight.grad
        assert grad is not None
        found.append(grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("patch", [8, 16])
def test_the_smallest_image_works_and_a_smaller_one_is_none(patch: int) -> None:
    side = smallest_image(patch) // patch
    net = segmenter(patch=patch, side=side).eval()
    assert net(torch.randn(1, 3, side * patch, side * patch)).isfinite().all()
    with pytest.raises(RuntimeError):
        net(torch.randn(1, 3, side * patch // 2, side * patch // 2))


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_a_file_gives_the_same_network(head: str, tmp_path: Path) -> None:
    net = segmenter(head)
    net.train().scores(torch.randn(4, 3, 32, 32))  # running averages of their own
    save_segmenter(net.eval(), tmp_path / "segmenter", {"steps": 1})
    again = read_segmenter(tmp_path / "segmenter")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), net(images)) and again.spec == net.spec
    assert not again.training and again.encoder.spec == net.encoder.spec
