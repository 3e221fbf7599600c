"""The graph hypernetwork: reads the graph of any module and writes a bank of numbers for its parameters.

A node of the graph is an operation with its shape; a core lets the nodes hear of each other (a transformer whose
attention is biased by distances in the graph, or one sweep forth and back of a gated graph network); a decoder writes
for each node a block of kernels, or a norm's two vectors. Structure and sizes follow GHN-2 (Knyazev et al., NeurIPS
2021) and GHN-3 (Knyazev et al., ICML 2023) as the spec of hyperinit gives them; what the hyper-initializer's paper
itself uses could not be read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ophjax.errors import InputError, unknown
from ophjax.nets.features import CHANNELS, DEGREES, LEVELS, SIDES, Features, GHNConfig
from ophjax.nets.graph import OPS
from ophjax.transforms.generation import VECTOR

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

CORES = ("graphormer", "gated")
MASKED = -(2.0**15)


def _normal(width: int) -> Any:
    return nn.initializers.truncated_normal(width**-0.5)


class NodeEmbedding(nn.Module):
    """Operation plus shape: ``Emb_op + concat(Emb_ch(out), Emb_ch(in), Emb_side(h), Emb_side(w))`` (c.2)."""

    width: int

    @nn.compact
    def __call__(self, graph: Features) -> Float[Array, "n d"]:
        quarter = self.width // 4
        op = nn.Embed(len(OPS), self.width, embedding_init=_normal(self.width), name="op")
        channels = nn.Embed(len(CHANNELS) + 1, quarter, embedding_init=_normal(self.width), name="channels")
        sides = nn.Embed(len(SIDES) + 1, quarter, embedding_init=_normal(self.width), name="sides")
        shape = (
            channels(graph.size[:, 0]),
            channels(graph.size[:, 1]),
            sides(graph.size[:, 2]),
            sides(graph.size[:, 3]),
        )
        return op(graph.op) + jnp.concatenate(shape, -1)


class GraphormerCore(nn.Module):
    """A pre-norm transformer over all nodes; attention is biased by the distances both ways (c.4)."""

    config: GHNConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], graph: Features) -> Float[Array, "n d"]:
        width, heads = self.config.width, self.config.heads
        for name, values, number in (
            ("inward", graph.inward, DEGREES), ("outward", graph.outward, DEGREES), ("level", graph.level, LEVELS),
        ):  # fmt: skip
            x = x + nn.Embed(number + 1, width, embedding_init=_normal(width), name=name)(values)
        bias = self._edge_bias(graph.distance)
        bias = jnp.where(graph.real[None, None, :], bias, MASKED)
        for i in range(self.config.layers):
            y = nn.LayerNorm(epsilon=1e-5, name=f"norm{i + 1}a")(x)
            qkv = nn.Dense(3 * width, use_bias=False, name=f"qkv{i + 1}")(y).reshape(len(x), 3, heads, width // heads)
            scores = jnp.einsum("nhe,mhe->hnm", qkv[:, 0], qkv[:, 1]) * (width // heads) ** -0.5 + bias
            y = jnp.einsum("hnm,mhe->nhe", jax.nn.softmax(scores), qkv[:, 2]).reshape(len(x), width)
            x = x + nn.Dense(width, name=f"out{i + 1}")(y)
            y = nn.LayerNorm(epsilon=1e-5, name=f"norm{i + 1}b")(x)
            y = nn.Dense(width, name=f"contract{i + 1}")(nn.gelu(nn.Dense(4 * width, name=f"expand{i + 1}")(y)))
            x = x + y
        return x

    def _edge_bias(self, distance: Int[Array, "n n"]) -> Float[Array, "heads n n"]:
        """``Linear(ReLU(Linear([E(D_uv); E(D_vu)])))``. The first layer is applied to the table before the look-up."""
        width, number = self.config.width, self.config.cutoff + 1
        table = self.param("distance", lambda key: _sinusoids(number, width))
        there = nn.Dense(width, use_bias=False, name="there")(table)
        back = nn.Dense(width, name="back")(table)
        hidden = nn.relu(there[distance] + back[distance.T])
        return nn.Dense(self.config.heads, name="edge")(hidden).transpose(2, 0, 1)


class NodeUpdate(nn.Module):
    """Updates one node by what it hears, and what it says from then on (c.3)."""

    width: int

    def setup(self) -> None:
        half = self.width // 2
        self.near = nn.Sequential([nn.Dense(half), nn.relu, nn.Dense(self.width), nn.relu])
        self.far = nn.Sequential([nn.Dense(half), nn.relu, nn.Dense(self.width), nn.relu])
        self.cell = nn.GRUCell(self.width)

    def say(self, h: Float[Array, "*n d"]) -> tuple[Array, Array]:
        """The messages of nodes to their neighbours, and to all that they have a path to."""
        return self.near(h), self.far(h)

    def __call__(self, carry: tuple[Array, Array, Array], inputs: tuple[Array, ...]) -> tuple[Any, None]:
        (h, near, far), (node, linked, weight, real) = carry, inputs
        new, _ = self.cell(h[node], linked @ near + weight @ far)
        new = jnp.where(real, new, h[node])
        said_near, said_far = self.say(new)
        return (h.at[node].set(new), near.at[node].set(said_near), far.at[node].set(said_far)), None


class GatedCore(nn.Module):
    """One sweep over the nodes in topological order and one in reverse, with the same weights (c.3).

    A node hears the sum of ``MLP(h)`` over its neighbours and of ``MLP_ve(h) / s`` over all nodes at path length s, the
    neighbours included, and is updated by a GRU cell at once. What a node says is computed when it changes.
    """

    config: GHNConfig

    @nn.compact
    def __call__(self, x: Float[Array, "n d"], graph: Features) -> Float[Array, "n d"]:
        update = NodeUpdate(self.config.width, name="update")
        scan = nn.scan(
            lambda module, carry, inputs: module(carry, inputs),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        # Padding hears nothing and says nothing: its distances are 0.
        for distance, order in ((graph.distance.T, graph.order), (graph.distance, graph.order[::-1])):
            linked = (distance == 1).astype(x.dtype)
            weight = jnp.where(distance > 0, 1.0 / jnp.maximum(distance, 1), 0.0)
            inputs = (order, linked[order], weight[order], graph.real[order])
            ((x, _, _), _) = scan(update, (x, *update.say(x)), inputs)
        return x


class Decoder(nn.Module):
    """Writes bank rows from node states: blocks of kernels, vectors, and the class layer of predicted heads (c.5)."""

    config: GHNConfig

    def setup(self) -> None:
        width, channels = self.config.width, self.config.channels
        last = nn.initializers.variance_scaling(1 / 25, "fan_in", "truncated_normal")
        self.spread = nn.Dense(4 * width * self.config.side**2)
        self.mix = nn.Dense(8 * width)
        self.block = nn.Dense(channels**2, kernel_init=last)
        self.hidden = nn.Dense(2 * width)
        self.vector = nn.Dense(2 * channels, kernel_init=last)
        if self.config.classes:
            self.head = nn.Dense(self.config.classes, kernel_init=last)
            self.head_bias = nn.Dense(self.config.classes, kernel_init=last)

    def kernels(self, h: Float[Array, "r d"], high: int, wide: int) -> Float[Array, "r c c high wide"]:
        """Decodes [out, in, height, width] blocks: the middle of the largest kernel, cut before the last layers."""
        side, channels = self.config.side, self.config.channels
        y = nn.relu(self.spread(h)).reshape(len(h), side, side, 4 * self.config.width)
        rows, columns = min(high, side), min(wide, side)
        top, left = (side - rows) // 2, (side - columns) // 2
        y = nn.relu(self.mix(y[:, top : top + rows, left : left + columns]))
        y = self.block(y).reshape(len(h), rows, columns, channels, channels).transpose(0, 3, 4, 1, 2)
        if (rows, columns) != (high, wide):
            y = jax.image.resize(y, (*y.shape[:3], high, wide), "bilinear")
        return y

    def vectors(self, h: Float[Array, "r d"]) -> Float[Array, "r 2 c"]:
        """Decodes a norm's scale (row 0) and a bias (row 1)."""
        return self.vector(nn.relu(self.hidden(h))).reshape(len(h), 2, self.config.channels)

    def __call__(self, h: Float[Array, "n d"], rows: Mapping[str, Int[Array, " r"]]) -> dict[str, Array]:
        bank = {}
        for group, owners in sorted(rows.items()):
            if group == VECTOR:
                bank[group] = self.vectors(h[owners])
            elif group == "head_bias":
                bank[group] = self.head_bias(nn.relu(self.vectors(h[owners])[:, 1]))
            elif group == "head":
                block = self.kernels(h[owners], 1, 1)[..., 0, 0]
                bank[group] = self.head(nn.relu(block).swapaxes(1, 2)).swapaxes(1, 2)
            else:
                high, wide = map(int, group.split("x"))
                bank[group] = self.kernels(h[owners], high, wide)
        return bank


class GHN(nn.Module):
    """Graph in, bank out: embedding, core, norm, decoder. One graph; ``jax.vmap`` for several."""

    config: GHNConfig = GHNConfig()

    @nn.compact
    def __call__(self, graph: Features) -> dict[str, Array]:
        check(self.config)
        x = NodeEmbedding(self.config.width, name="nodes")(graph)
        core = GraphormerCore if self.config.core == "graphormer" else GatedCore
        x = core(self.config, name="core")(x, graph)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x)
        return Decoder(self.config, name="decoder")(x, graph.rows)


def bank_of(ghn: GHN, params: Any, graph: Features) -> dict[str, Array]:
    """What a hypernetwork writes for one graph: for each entry of the bank, [rows, ...]."""
    bank: Any = ghn.apply({"params": params}, graph)
    return bank


def check(config: GHNConfig) -> None:
    """Raises InputError for sizes that cannot be built."""
    if config.core not in CORES:
        raise unknown("core", config.core, CORES)
    if config.width < 4 or config.width % 4 or config.width % config.heads:
        raise InputError(
            f"The hypernetwork's width is {config.width} with {config.heads} heads; it must be divisible by 4 (four "
            "shape embeddings) and by the number of heads. Choose another width or other heads."
        )
    for name, least in (("layers", 1), ("channels", 1), ("side", 1), ("cutoff", 1), ("classes", 0)):
        if getattr(config, name) < least:
            raise InputError(f"The hypernetwork's {name} is {getattr(config, name)}; give at least {least}.")


@functools.lru_cache(maxsize=8)
def _sinusoid_table(number: int, width: int) -> np.ndarray:
    rate = np.exp(-math.log(10000.0) * np.arange(0, width, 2) / width)
    angle = np.arange(number)[:, None] * rate[None, :]
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(number, -1)[:, :width].astype(np.float32)


def _sinusoids(number: int, width: int) -> jax.Array:
    return jnp.asarray(_sinusoid_table(number, width))
