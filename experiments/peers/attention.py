"""Cross-attention between maps in plain PyTorch: the layers of SeATrans, self-calibration and DiFF."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers.blocks import depthwise


def grid_of(size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Tokens down and across."""
    return min(size[0], tokens), min(size[1], tokens)


def window_of(size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The sides of windows that divide a map."""
    return tuple(next(d for d in range(min(n, tokens), 0, -1) if n % d == 0) for n in size)


class DropPath(nn.Module):
    """Drops a residual branch for whole examples and rescales the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < 1 - self.rate
        return torch.where(kept, x / (1 - self.rate), 0.0)


class FeedForward(nn.Module):
    """LayerNorm, linear, GELU, linear."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = max(1, round(ratio * width))
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(self.norm(x))))


class CrossAttention(nn.Module):
    """Multi-head attention with a LayerNorm on query, key and value; positions added to query and key by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name in ("query", "key", "value"):
            setattr(self, f"{name}_norm", nn.LayerNorm(width, bias=name != "key"))
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.out = nn.Linear(width, width)

    def project(self, x: Tensor, name: str, position: Tensor | None = None) -> Tensor:
        if position is not None:
            x = (x.unflatten(-1, (self.heads, -1)) + position).flatten(-2)
        x = getattr(self, name)(getattr(self, f"{name}_norm")(x))
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, place: Tensor, context: Tensor, context_place: Tensor) -> Tensor:
        query, key = self.project(x, "query", place), self.project(context, "key", context_place)
        mixed = F.scaled_dot_product_attention(query, key, self.project(context, "value"))
        return self.out(mixed.transpose(1, 2).flatten(-2))


class AttentionLayer(nn.Module):
    """``x' = x + DropPath(MHA(x, context))``, then ``x' + DropPath(FFN(x'))``."""

    def __init__(self, width: int, heads: int, ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention, self.feed_forward = CrossAttention(width, heads), FeedForward(width, ratio)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor, place: Tensor, context: Tensor, context_place: Tensor) -> Tensor:
        x = x + self.drop(self.attention(x, place, context, context_place))
        return x + self.drop(self.feed_forward(x))


class TokenEmbed(nn.Module):
    """Depthwise 3x3, average pool, linear, LayerNorm; with a table of positions for all heads."""

    def __init__(self, channels: int, width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.depthwise = grid, depthwise(channels)
        self.linear, self.norm = nn.Linear(channels, width, bias=False), nn.LayerNorm(width)
        self.position = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.depthwise(x), self.grid)
        return self.norm(self.linear(x.flatten(2).transpose(1, 2)))


def to_windows(x: Tensor, side: tuple[int, int]) -> Tensor:
    """[b, h, w, c] as windows of tokens [b n, s, c]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side[0], side[0], width // side[1], side[1], channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side[0] * side[1], channels)


def from_windows(x: Tensor, shape: torch.Size, side: tuple[int, int]) -> Tensor:
    """Undoes ``to_windows``."""
    batch, height, width, _ = shape
    x = x.reshape(batch, height // side[0], width // side[1], side[0], side[1], x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, x.shape[-1])


class AttentionStage(nn.Module):
    """Updates a map [b, c, h, w] by attention to another or to itself, bounded by pooling or by windows.

    Args:
      size: height and width of the map that asks.
      context: channels, height and width of the map that is asked, None for itself.
      keep_context: adds the embedded context to the residual stream.
    """

    def __init__(self, channels: int, size: tuple[int, int], heads: int, *, width: int | None = None,
                 context: tuple[int, int, int] | None = None, tokens: int = 32, ratio: float = 3,
                 drop_path: float = 0.05, windows: bool = False, keep_context: bool = False) -> None:  # fmt: skip
        super().__init__()
        width = width or channels
        self.windows, self.keep_context, self.alone = windows, keep_context, context is None
        self.query_depthwise, self.query_linear = depthwise(channels), nn.Linear(channels, width, bias=False)
        told = (channels, *size) if context is None else context
        if context is not None:
            self.context_depthwise = depthwise(told[0])
            self.context_linear = nn.Linear(told[0], width, bias=False)
        self.norm = nn.LayerNorm(width)
        grids = [window_of(one, tokens) if windows else grid_of(one, tokens) for one in (size, told[1:])]
        self.query_grid, self.key_grid = grids
        for name, grid, whole in zip(("query", "key"), grids, (size, told[1:]), strict=True):
            rows, columns = whole if windows else grid
            table = 0.02 * torch.randn(1, rows * columns, 1, width // heads)
            setattr(self, f"{name}_position", nn.Parameter(table))
        self.attention, self.feed_forward = CrossAttention(width, heads), FeedForward(width, ratio)
        self.drop = DropPath(drop_path)

    def embed(self, x: Tensor, name: str) -> Tensor:
        """A map as [b, h, w, width]."""
        x = getattr(self, f"{name}_depthwise")(x).permute(0, 2, 3, 1)
        return self.norm(getattr(self, f"{name}_linear")(x))

    def tokens(self, x: Tensor, grid: tuple[int, int], table: Tensor) -> tuple[Tensor, Tensor]:
        if self.windows:
            places = to_windows(table.reshape(1, *x.shape[1:3], -1), grid)
            return to_windows(x, grid), places.repeat(x.shape[0], 1, 1)[:, :, None]
        pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid) if x.shape[1:3] != grid else x.permute(0, 3, 1, 2)
        return pooled.flatten(2).transpose(1, 2), table

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        asked = self.embed(x, "query")
        told = asked if self.alone else self.embed(context, "context")
        query = self.tokens(asked, self.query_grid, self.query_position)
        key = self.tokens(told, self.key_grid, self.key_position)
        mixed = self.attention(*query, *key)
        batch, height, columns, width = asked.shape
        if self.windows:
            update = from_windows(mixed, asked.shape, self.query_grid)
        else:
            update = mixed.transpose(1, 2).unflatten(2, self.query_grid)
            if (height, columns) != self.query_grid:
                update = F.interpolate(update, (height, columns), mode="bilinear")
            update = update.permute(0, 2, 3, 1)
        stream = asked + told if self.keep_context and not self.alone else asked
        y = stream.reshape(batch, -1, width) + self.drop(update.reshape(batch, -1, width))
        y = y + self.drop(self.feed_forward(y))
        return y.reshape(asked.shape).permute(0, 3, 1, 2)
