"""The vision transformer of the field's tables, as github.com/GeorgeCazenavette/glad has it.

Up to 64 pixels: patches of 4, 6 blocks, layer norms; else patches of 16, 10 blocks, no layer norm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.errors import ConfigError
from gsdd_lib.networks.layers import Dropout, Network

DIM, HEADS, HEAD_DIM, DROPOUT = 512, 8, 64, 0.1
LARGEST_SMALL = 64  # pixels per side


def vit(shape: tuple[int, int, int], num_classes: int) -> Network:
    """Patches as tokens, blocks of attention and two linear layers, then the class token."""
    channels, height, width = shape
    small = max(height, width) <= LARGEST_SMALL
    patch, depth = (4, 6) if small else (16, 10)
    if height % patch or width % patch:
        fault = f"ViT cuts an image into patches of {patch}x{patch} pixels"
        fault += f" and {height}x{width} is not a multiple of that"
        raise ConfigError(f"{fault}; choose another resolution")
    patches = height * width // patch**2
    layers = Transformer(channels, patch, patches, depth, normed=small)
    return Network(shape, num_classes, layers, DIM, 4 * patches * 3 * HEADS * HEAD_DIM)


class Transformer(nn.Module):
    """Images [N, C, H, W] to the class token after all blocks, [N, DIM]."""

    def __init__(self, channels: int, patch: int, patches: int, depth: int, normed: bool) -> None:
        super().__init__()
        self.patch, self.embedding = patch, nn.Linear(channels * patch**2, DIM)
        self.tokens, self.dropout = Tokens(patches), Dropout(DROPOUT)
        self.blocks = nn.Sequential(*[TransformerBlock(normed) for _ in range(depth)])
        self.norm = _norm(normed)

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)  # [N, T, C p p]
        tokens = self.dropout(self.tokens(self.embedding(patches)))  # [N, 1 + T, DIM]
        return self.norm(self.blocks(tokens)[:, 0])


class Tokens(nn.Module):
    """The class token put before the patches' tokens, and the positions added to all."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, patches + 1, DIM))
        self.class_token = nn.Parameter(torch.empty(1, 1, DIM))

    def initialize_(self, generator: torch.Generator) -> None:
        for parameter in (self.position, self.class_token):
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position


class TransformerBlock(nn.Module):
    """``x += attention(norm(x)); x += linear(gelu(linear(norm(x))))`` on [N, T, DIM]."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.attention_norm, self.attention = _norm(normed), Attention()
        hidden = (nn.Linear(DIM, DIM), nn.GELU(), Dropout(DROPOUT))
        self.mlp = nn.Sequential(_norm(normed), *hidden, nn.Linear(DIM, DIM), Dropout(DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(x)


class Attention(nn.Module):
    """Multi-head self-attention, written out so that it can be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * HEADS * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, DIM)
        self.dropout = Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, HEADS, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, HEADS, T, HEAD_DIM] each
        weights = (q @ k.transpose(-1, -2) * HEAD_DIM**-0.5).softmax(-1)  # [N, HEADS, T, T]
        return self.dropout(self.out((weights @ v).transpose(1, 2).flatten(2)))


def _norm(normed: bool) -> nn.Module:
    return nn.LayerNorm(DIM) if normed else nn.Identity()
