"""Features pooled per part, against a slow loop."""

import torch
from hypothesis import given, strategies as st

from semmae.evaluation.tokens import image_tokens, pool_parts
from semmae.models.vit import Features


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.integers(0, 99))
def test_parts_are_means_of_their_patches(images: int, patches: int, parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, patches, 5, generator=generator)
    labels = torch.randint(parts, (images, patches), generator=generator)
    means, counts = pool_parts(tokens, labels, parts)
    for image in range(images):
        for part in range(parts):
            of_part = tokens[image][labels[image] == part]
            assert counts[image, part] == len(of_part)
            expected = of_part.mean(0) if len(of_part) else torch.zeros(5)
            torch.testing.assert_close(means[image, part], expected, atol=1e-5, rtol=1e-5)
    whole = (means * counts[:, :, None]).sum(1) / patches
    torch.testing.assert_close(whole, tokens.mean(1), atol=1e-5, rtol=1e-5)


def test_only_what_is_asked_for() -> None:
    features = Features(torch.randn(2, 3), torch.randn(2, 4, 3))
    assert list(image_tokens(features, ["patch", "cls"])) == ["cls", "patch"]
    labels = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]], dtype=torch.uint8)
    found = image_tokens(features, ["mean", "parts"], labels, 3)
    assert list(found) == ["mean", "parts", "parts_count"]
    assert found["parts_count"].tolist() == [[2, 2, 0], [0, 0, 4]]
    torch.testing.assert_close(found["parts"][1, 2], found["mean"][1])
