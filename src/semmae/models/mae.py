"""The masked autoencoder (MAE, arXiv 2111.06377): encode what is visible, predict what is hidden.

Notable here:
- the mask is an argument: the model draws no random number;
- tokens stay in shuffled order, visible first: attention does not mind, so nothing is unshuffled;
- only hidden patches go through the prediction layer;
- in place of pixels it may predict a teacher's tokens (MILAN, arXiv 2208.06049), which are arguments too: those of
  hidden patches by the decoder, those of visible ones and of the image straight from the encoder, by a layer each.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from semmae.levels import PIXEL_TYPES, levels, of_channels
from semmae.losses import image_token_loss, masked_pixel_loss, masked_token_loss
from semmae.models.blocks import run_blocks
from semmae.models.vit import Encoder, init_transformer
from semmae.patches import normalize_patches, patchify, resize_positions, sincos_positions
from semmae.sizes import Grid, Size


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes of the decoder, the MAE paper's for ViT-B and ViT-L; and what it predicts."""

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    token_width: int = 0  # of the teacher whose tokens are predicted; 0: pixels

    @classmethod
    def named(cls, model: str) -> "DecoderSpec":
        return DECODERS[model]


# By name of the encoder: the MAE paper's for ViT-B and larger; for smaller encoders our choice, so
# that the decoder stays the lighter half.
DECODERS = {
    "vit_mini": DecoderSpec(96, 1, 3),
    "vit_tiny": DecoderSpec(192, 4, 6),
    "vit_small": DecoderSpec(256, 4, 8),
    "vit_base": DecoderSpec(),
    "vit_large": DecoderSpec(),
    "vit_huge": DecoderSpec(),
}


@dataclass(frozen=True)
class MAEOutput:
    """The loss, and the predictions of hidden patches."""

    loss: Tensor  # scalar, mean squared error on hidden patches; of a teacher's tokens on all, and on the image's
    hidden_pred: Tensor  # (B, H, p·p·3), of a teacher's tokens (B, H, D); rows in the order of `hidden`
    hidden: Tensor  # (B, H) indices, ascending
    num_patches: int  # L

    @property
    def pred(self) -> Tensor:
        """Predictions on the full grid (B, L, p·p·3 or D), row-major; zero on visible patches."""
        batch, _, width = self.hidden_pred.shape
        full = self.hidden_pred.new_zeros(batch, self.num_patches, width)
        return full.scatter(1, self.hidden[:, :, None].expand(-1, -1, width), self.hidden_pred)


def split_mask(mask: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Mask bool (B, L) → ascending indices of visible (B, V) and hidden (B, H) patches; H is counted if not given."""
    # A stable sort of 0/1 puts visible before hidden and keeps the grid's order in both.
    order = mask.long().argsort(dim=1, stable=True)
    visible = mask.shape[1] - (_hidden_in_a_row(mask) if count is None else count)
    return order[:, :visible], order[:, visible:]


def _hidden_in_a_row(mask: Tensor) -> int:
    """How many patches every row of a mask bool (B, L) hides; waits for the device."""
    least, most = torch.stack(mask.sum(1).aminmax()).tolist()
    if least != most:
        raise ValueError(
            f"the mask hides {least} to {most} patches a row; hide the same number in every row, as semmae.masking does"
        )
    return int(most)


def _at(patches: Tensor, places: Tensor) -> Tensor:
    """Of patches (B, L, D) those of indices (B, H): (B, H, D)."""
    return patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[2]))


class MaskedAutoencoder(nn.Module):
    """Encoder, and a light decoder; with `norm_pix_loss` it predicts pixels normalised per patch.

    With a `token_width` of the decoder it predicts a teacher's tokens of that width, and no pixels.
    """

    REGIONS = ("_begin", "_between", "_end")  # what is around the blocks, each worth a kernel or two of its own
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: Encoder, decoder: DecoderSpec, norm_pix_loss: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.pooling = "mean"  # its loss trains patch tokens and their mean, not the class token
        # In buffers that no file holds: where the network is, an image is normalised without waiting for the device.
        for name, values in (("pixel_mean", encoder.spec.mean), ("pixel_std", encoder.spec.std)):
            self.register_buffer(name, of_channels(values), persistent=False)
        self.decoder = decoder
        self.norm_pix_loss = norm_pix_loss
        self.checkpointing = False  # less memory in training, for a third more time: see `run_blocks`
        self.bf16_residual = False  # fewer bytes moved, each sum rounded: see there
        vit = encoder.vit
        if not isinstance(vit, VisionTransformer):
            raise ValueError("the encoder has rotary positions, which MAE has not")
        if vit.num_prefix_tokens != 1 or vit.no_embed_class or not isinstance(vit.norm_pre, nn.Identity):
            raise ValueError("the encoder has registers, a pre-norm or no class position, which MAE has not")
        assert vit.pos_embed is not None
        # Fixed in MAE; those of an encoder that was read from a file arrive trainable.
        vit.pos_embed.requires_grad_(False)
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(encoder.spec.grid, decoder.width), requires_grad=False)
        # timm calls it, whatever its annotation asks for.
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder.width, decoder.num_heads, qkv_bias=True, norm_layer=norm) for _ in range(decoder.depth))
        )
        self.decoder_norm = norm(decoder.width)
        self.decoder_pred = nn.Linear(
            decoder.width, decoder.token_width or encoder.patch_size**2 * encoder.spec.channels
        )
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_norm, self.decoder_pred):
            init_transformer(part)
        nn.init.normal_(self.mask_token, std=0.02)
        if decoder.token_width:
            self.visible_pred = nn.Linear(encoder.width, decoder.token_width)
            self.image_pred = nn.Linear(encoder.width, decoder.token_width)
            init_transformer(self.visible_pred)
            init_transformer(self.image_pred)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        subset: Tensor | None = None,
        count: int | None = None,
        tokens: Tensor | None = None,
        image_token: Tensor | None = None,
    ) -> MAEOutput:
        """Images (B, 3, H, W) and a mask bool (B, L), the same count in every row, to predictions.

        Images are normalised, or uint8 as they were decoded, which are normalised here. `subset`: indices (B, N) of the
        patches that take part, the mask then (B, N) over these. `count`: how many each row hides, where that is known:
        then nothing waits for a GPU. `tokens`: the teacher's (B, L, D), a token a patch, where these are predicted;
        with `image_token` (B, D), that of each whole image, the mean of the visible tokens predicts it as well.
        """
        self._check_mask(images, mask, subset)
        if self.decoder.token_width:
            tokens = self._checked_tokens(tokens, images)
        places = split_mask(mask, count)
        images, embedded, visible, hidden = self._begin(images, *places, subset)
        through = partial(run_blocks, checkpointing=self.checkpointing, bf16_residual=self.bf16_residual)
        seen = through(self.encoder.vit.blocks, embedded)
        rows, columns = grid = self.encoder.grid_of(images)
        encoded, shuffled = self._between(seen, visible, hidden, grid)
        decoded = through(self.decoder_blocks, shuffled)
        loss, prediction = self._end(images, encoded, decoded, visible, hidden, tokens, image_token)
        return MAEOutput(loss, prediction, hidden, rows * columns)

    def _begin(
        self, images: Tensor, visible: Tensor, hidden: Tensor, subset: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, normalised; what enters the encoder's blocks; and where on the grid the patches are."""
        if images.dtype in PIXEL_TYPES:
            images = levels(images).sub(self.pixel_mean).div(self.pixel_std)
        if subset is not None:
            visible, hidden = subset.gather(1, visible), subset.gather(1, hidden)
        return images, self.encoder.embed_visible(images, visible), visible, hidden

    def _end(
        self,
        images: Tensor,
        encoded: Tensor,
        decoded: Tensor,
        visible: Tensor,
        hidden: Tensor,
        tokens: Tensor | None,
        image_token: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The loss, and what is predicted of hidden patches: (B, H, p·p·3 or D)."""
        prediction: Tensor = self.decoder_pred(self.decoder_norm(decoded[:, 1 + visible.shape[1] :]))
        if tokens is None or not self.decoder.token_width:
            target = _at(patchify(images, self.encoder.patch_size), hidden)
            loss = masked_pixel_loss(prediction, normalize_patches(target) if self.norm_pix_loss else target)
            return loss, prediction
        loss = self._token_loss(encoded[:, 1:], prediction, _at(tokens, visible), _at(tokens, hidden))
        if image_token is not None:
            loss = loss + image_token_loss(self.image_pred(encoded[:, 1:].mean(1)), image_token)
        return loss, prediction

    def _token_loss(self, encoded: Tensor, prediction: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Error of all patches alike: of encoded ones (B, V, C), a layer away, and of predicted ones (B, H, D)."""
        shown = masked_token_loss(self.visible_pred(encoded), visible)
        share = hidden.shape[1] / (hidden.shape[1] + visible.shape[1])
        return share * masked_token_loss(prediction, hidden) + (1 - share) * shown

    def _check_mask(self, images: Tensor, mask: Tensor, subset: Tensor | None) -> None:
        """Refuse a mask of other patches than the images have: these would never be looked at."""
        rows, columns = self.encoder.grid_of(images)
        wanted = (len(images), rows * columns) if subset is None else tuple(subset.shape)
        if mask.shape != wanted:
            among = "" if subset is None else " of the subset"
            raise ValueError(f"a mask {tuple(mask.shape)} for patches {wanted}{among}; give one value a patch")

    def _checked_tokens(self, tokens: Tensor | None, images: Tensor) -> Tensor:
        """The teacher's tokens, one for each patch of the images; ValueError where there are others, or none."""
        rows, columns = self.encoder.grid_of(images)
        wanted = (len(images), rows * columns, self.decoder.token_width)
        if tokens is None or tokens.shape != wanted:
            given = "none are given" if tokens is None else f"they are {tuple(tokens.shape)}"
            raise ValueError(f"predicts the tokens of a teacher, and {given}; give tokens {wanted}")
        return tokens

    def set_image_size(self, image_size: Size) -> None:
        """Resample the positions of encoder and decoder in place, for images of that size."""
        before = self.encoder.spec.grid
        self.encoder.set_image_size(image_size)
        assert self.encoder.vit.pos_embed is not None
        self.encoder.vit.pos_embed.requires_grad_(False)  # resampled, it is a new parameter
        positions = resize_positions(self.decoder_pos_embed, self.encoder.spec.grid, before)
        self.decoder_pos_embed = nn.Parameter(positions.detach(), requires_grad=False)

    def _between(self, tokens: Tensor, visible: Tensor, hidden: Tensor, size: Grid) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + V, C) that leave the encoder's blocks → these normed, and what enters the decoder's blocks."""
        encoded = self.encoder.vit.norm(tokens)
        tokens = self.decoder_embed(encoded)
        masked = self.mask_token.to(tokens.dtype).expand(len(tokens), hidden.shape[1], -1)
        positions = resize_positions(self.decoder_pos_embed, size, self.encoder.spec.grid)
        grid = positions[:, 1:].expand(len(tokens), -1, -1)
        order = torch.cat([visible, hidden], dim=1)
        shuffled = grid.gather(1, order[:, :, None].expand(-1, -1, self.decoder.width))
        token = positions[:, :1].expand(len(tokens), -1, -1)
        return encoded, torch.cat([tokens, masked], dim=1) + torch.cat([token, shuffled], dim=1)
