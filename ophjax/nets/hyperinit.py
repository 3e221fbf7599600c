"""Parameters for any module from a trained hypernetwork: the drop-in for ``module.init``, and pools to train on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from ophjax.errors import InputError, unknown
from ophjax.keys import at
from ophjax.nets.children import Architecture, build
from ophjax.nets.features import Features, GHNConfig, featurise, lay_out
from ophjax.nets.graph import ModuleGraph, call_options, trace_graph
from ophjax.nets.hypernet import GHN, bank_of
from ophjax.transforms.generation import Path, Piece, assemble, postprocess
from ophjax.types import Key

FALLBACKS = ("module_init", "error")


def predict_params(
    ghn: GHN,
    ghn_params: Any,
    graph: ModuleGraph,
    *,
    head: str = "fresh",
    shuffled: int | None = None,
) -> tuple[dict[Path, jax.Array], tuple[Piece, ...]]:
    """Predicts the parameters of a graph: tensors by path, and how each was made. Differentiable in ``ghn_params``.

    Args:
      head: see ``hyper_init``.
      shuffled: seed of a permutation of the operations among the nodes, a control.
    """
    pieces, rows = lay_out(graph, ghn.config, head=head)
    bank = bank_of(ghn, ghn_params, featurise(graph, ghn.config, rows, seed=shuffled))
    return assemble(pieces, bank, normalise=ghn.config.normalise), pieces


def hyper_init(
    ghn_params: Any,
    module: nn.Module,
    *example: Any,
    ghn: GHN,
    head: str = "fresh",
    head_paths: Sequence[Path] | None = None,
    fallback: str = "module_init",
    noise: float = 1e-5,
    orth_from: int | None = None,
    spread: str = "predicted",
    shuffled: int | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    graph: ModuleGraph | None = None,
) -> Callable[[Key], dict[str, Any]]:
    """Makes a drop-in for ``module.init`` that starts a module from a trained hypernetwork.

    The graph is traced once. The function that is returned is pure, can be compiled, and is differentiable in
    ``ghn_params``; its tree, shapes and types are those of ``module.init``, and collections other than ``params``
    are left as ``module.init`` makes them. The key is used for the fresh head, parameters that no node predicts, and
    noise only.

    Args:
      ghn_params: of ``ghn``, trained (``--method hyperinit``).
      module: any Flax module.
      example: what the module is called with; shapes (``jax.ShapeDtypeStruct``) are enough for the graph, and zeros of
        them are used for the other collections.
      head: ``fresh`` leaves the last layer to the module's own initialiser; ``predict`` predicts it too.
      head_paths: parameters that make up the head, where the last dense layer or 1x1 convolution is not it.
      fallback: parameters without a node are made by the module's own initialiser, or are an ``error``.
      noise, orth_from, spread: see ``transforms.generation.postprocess``. To train on from there with a fresh head,
        ``spread="he"`` and a noise of 0.1 were chosen on one tuning seed (BUILD_NOTES.md).
      shuffled: a control, see ``predict_params``.
      train_kwargs: keyword arguments of the module's call for the trace; found where it takes ``train``.
      graph: of the module, where it is known.

    Raises:
      InputError: with ``fallback="error"``, parameters that cannot be predicted are named; ``head_paths`` that the
        module does not have.
    """
    if fallback not in FALLBACKS:
        raise unknown("fallback", fallback, FALLBACKS)
    graph = trace_graph(module, *example, train_kwargs=train_kwargs) if graph is None else graph
    if head_paths is not None:
        graph = with_head(graph, head_paths)
    if fallback == "error" and graph.fallback:
        lost = "; ".join(f"{'/'.join(path)} ({why})" for path, why in graph.fallback[:8])
        raise InputError(
            f"{type(module).__name__} has {len(graph.fallback)} parameter(s) that no hypernetwork predicts: {lost}. "
            'Pass fallback="module_init" to leave them to the module\'s own initialiser.'
        )
    options = call_options(module, train=False) if train_kwargs is None else dict(train_kwargs)

    def init(key: Key) -> dict[str, Any]:
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if hasattr(x, "shape") else x, example)
        variables = dict(module.init(at(key, "module"), *inputs, **options))
        tensors, pieces = predict_params(ghn, ghn_params, graph, head=head, shuffled=shuffled)
        tensors = postprocess(at(key, "noise"), tensors, pieces, noise=noise, orth_from=orth_from, spread=spread)
        return variables | {"params": graft(variables["params"], tensors)}

    return init


def with_head(graph: ModuleGraph, paths: Sequence[Path]) -> ModuleGraph:
    """Names other parameters as a graph's head.

    Raises:
      InputError: the module has no such parameters.
    """
    head, known = tuple(tuple(path) for path in paths), [path for path, _, _ in graph.shapes]
    if strange := [path for path in head if path not in known]:
        wrong, now, every = (
            ", ".join("/".join(map(str, path)) for path in some[:40]) for some in (strange, graph.head, known)
        )
        raise InputError(
            f"head_paths names {wrong}, which this module does not have. The head that was found: {now or 'none'}. "
            f"Parameters: {every}{', ...' if len(known) > 40 else ''}. Give a list of paths, each a tuple of names."
        )
    return dataclasses.replace(graph, head=head)


def graft(tree: Any, tensors: Mapping[Path, jax.Array]) -> Any:
    """Replaces the leaves of nested dictionaries at the given paths."""

    def walk(node: Any, path: Path) -> Any:
        if isinstance(node, Mapping):
            return {name: walk(child, (*path, name)) for name, child in node.items()}
        return tensors.get(path, node)

    return walk(tree, ())


def recalibrate(module: nn.Module, variables: Mapping[str, Any], batches: Sequence[jax.Array]) -> dict[str, Any]:
    """Fills running batch statistics by one pass in train mode: their mean over the batches. Nothing else changes.

    Args:
      variables: of the module; without ``batch_stats`` they are returned as they are.
      batches: images [b, h, w, c], at least one batch.
    """
    if not variables.get("batch_stats"):
        return dict(variables)
    # From statistics of zero, one update with momentum m leaves (1 - m) times the batch's own.
    kept = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    ones = jax.tree.map(jnp.ones_like, variables["batch_stats"])

    def update(images: jax.Array, stats: Any) -> Any:
        return module.apply(
            {**variables, "batch_stats": stats}, images, **call_options(module, train=True), mutable=["batch_stats"]
        )[1]["batch_stats"]

    found = []
    for images in batches:
        low, high = update(images, kept), update(images, ones)
        # update(s) = m s + (1 - m) x for an unknown m: two starts give m and x.
        found.append(jax.tree.map(lambda a, b: a / jnp.maximum(1 - (b - a), 1e-6), low, high))
    return {**variables, "batch_stats": jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)}


class Pool(NamedTuple):
    """Architectures to train a hypernetwork on, traced and padded alike.

    Attributes:
      archs, modules, graphs: of each child; pieces: where its parameters lie in a bank.
      features: of all children, stacked along the first axis.
      image: the shape of the images, [h, w, c].
    """

    archs: tuple[Architecture, ...]
    modules: tuple[nn.Module, ...]
    graphs: tuple[ModuleGraph, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    features: Features
    image: tuple[int, int, int]

    def banks(self, ghn: GHN, params: Any, picks: Any = slice(None)) -> dict[str, jax.Array]:
        """The hypernetwork's output for some children, stacked along the first axis."""
        chosen = jax.tree.map(lambda x: jnp.asarray(x)[picks], self.features)
        return jax.vmap(lambda graph: bank_of(ghn, params, graph))(chosen)

    def tree_of(self, child: int, tensors: Mapping[Path, jax.Array]) -> Any:
        """A child's parameter tree; what the hypernetwork does not predict is zero (children have no such thing)."""
        shapes = self.graphs[child].shapes
        return unflatten_dict(
            {path: tensors[path] if path in tensors else jnp.zeros(shape, dtype) for path, shape, dtype in shapes}
        )

    def statistics(self, child: int) -> Any:
        """A child's batch statistics at the start, empty where it has none: means 0, variances 1."""
        found = self.graphs[child].statistics
        return unflatten_dict({path: jnp.full(shape, path[-1] == "var", dtype) for path, shape, dtype in found})


@functools.lru_cache(maxsize=8)
def make_pool(
    archs: tuple[Architecture, ...],
    image: tuple[int, int, int],
    config: GHNConfig,
    *,
    classes: int,
    regions: int,
    head: str = "predict",
) -> Pool:
    """Traces every architecture on images of a shape [h, w, c] and pads the graphs to the largest."""
    modules = tuple(build(arch, classes=classes, regions=regions) for arch in archs)
    example = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    graphs = tuple(trace_graph(module, example) for module in modules)
    laid = [lay_out(graph, config, head=head) for graph in graphs]
    groups = sorted({group for _, rows in laid for group in rows})
    most = {group: max(len(rows.get(group, ())) for _, rows in laid) for group in groups}
    nodes = max(len(graph.nodes) for graph in graphs)
    each = [
        featurise(graph, config, rows, nodes=nodes, most=most) for graph, (_, rows) in zip(graphs, laid, strict=True)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    return Pool(archs, modules, graphs, tuple(pieces for pieces, _ in laid), stacked, image)


def unit_bank(ghn: GHN, ghn_params: Any, graph: ModuleGraph) -> Any:
    """Rescales the last decoder layer so that a graph's decoded kernels have a standard deviation of 1 ((j) 10).

    Without it the kernels of an untrained hypernetwork are several times smaller than those of He's initialiser.
    """
    _, rows = lay_out(graph, ghn.config)
    bank = bank_of(ghn, ghn_params, featurise(graph, ghn.config, rows))
    blocks = [values for group, values in bank.items() if "x" in group]
    mean_square = sum(jnp.square(block).sum() for block in blocks) / sum(block.size for block in blocks)
    decoder = dict(ghn_params["decoder"])
    decoder["block"] = jax.tree.map(lambda leaf: leaf * jax.lax.rsqrt(mean_square + 1e-12), decoder["block"])
    return {**ghn_params, "decoder": decoder}
