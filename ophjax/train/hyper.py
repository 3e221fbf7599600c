"""A trained hypernetwork at work: read from its run, and used to start the networks of any method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ophjax import methods, trees
from ophjax.errors import InputError
from ophjax.keys import at
from ophjax.nets.features import lay_out
from ophjax.nets.graph import ModuleGraph, trace_graph
from ophjax.nets.hyperinit import graft, predict_params
from ophjax.nets.hypernet import GHN
from ophjax.nets.networks import find_networks
from ophjax.train.checkpoint import Checkpoints
from ophjax.train.logs import say
from ophjax.train.restore import fill, read_single
from ophjax.transforms.generation import Path as Place
from ophjax.transforms.generation import postprocess
from ophjax.types import Key, Method, TrainState

PREFIX = "hyper:"
NOISE = 0.1
"""Noise on predicted kernels where a network is trained on from there; see ``transforms.generation.postprocess``."""


def load_hyper(folder: Path) -> tuple[GHN, Any]:
    """Reads the hypernetwork of a run of ``--method hyperinit``: the module and its parameters.

    The newest checkpoint is read, which is the last of a finished run.

    Raises:
      InputError: no such run, a run of another method, or no checkpoint.
    """
    about = read_single(folder)
    if about["method"] != "hyperinit":
        raise InputError(f"{folder} is a run of {about['method']}. Give the folder of a run of --method hyperinit.")
    module = methods.load("hyperinit")
    config = fill(module.Config, about["config"]["method"], folder)
    if not (folder / "checkpoints").is_dir():
        raise InputError(f"{folder} has no checkpoints yet. Wait for its first one, or give another run.")
    with closing(Checkpoints(folder / "checkpoints", read_only=True)) as saved:
        if not saved.steps():
            raise InputError(f"{folder} has no whole checkpoint yet. Wait for its first one, or give another run.")
        params = saved.read(saved.steps()[-1])["params"]["hyper"]
    return GHN(module.ghn_config(config)), params


def parse_source(source: str) -> tuple[GHN, Any]:
    """Reads the hypernetwork that ``hyper:RUN_FOLDER`` names.

    Raises:
      InputError: the text is another, or see ``load_hyper``.
    """
    if not source.startswith(PREFIX) or len(source) == len(PREFIX):
        raise InputError(f"--init {source!r}: expected hyper:RUN_FOLDER, the folder of a run of --method hyperinit.")
    return load_hyper(Path(source.removeprefix(PREFIX)))


def starter(source: str, method: Method, key: Key, batch: Any) -> Callable[[TrainState], TrainState]:
    """Prepares what starts a method's networks from a hypernetwork: ``state = start(state)``.

    The networks are found by running ``method.init`` on shapes, and each is traced to a graph. Heads stay fresh, as do
    parameters that no node predicts.

    Args:
      source: ``hyper:RUN_FOLDER``.
      method: ``Method``.
      key: for noise.
      batch: shapes of a batch.

    Raises:
      InputError: no such run; no network of the method could be predicted.
    """
    ghn, ghn_params = parse_source(source)
    networks = find_networks(method.init, key, batch)
    makers: dict[str, Callable[[Any, Key], Any]] = {}
    for name, network in networks.items():
        # The module's own train mode where that is all there is to choose; else exactly as it was called.
        options = None if set(network.kwargs) <= {"train"} else network.kwargs
        graph = trace_graph(network.module, *network.args, train_kwargs=options)
        pieces, _ = lay_out(graph, ghn.config)
        say(f"--init: {name}: {len(pieces)} of {len(graph.shapes)} parameter tensors from {source}, the rest as usual.")
        if pieces:
            makers[name] = _maker(ghn, ghn_params, graph, [piece.path for piece in pieces])
    if not makers:
        raise InputError(f"--init {source}: this method has no network that can be predicted.")

    def start(state: TrainState) -> TrainState:
        def walk(tree: Any, name: str) -> Any:
            if name in makers:
                return makers[name](tree, at(key, name))
            if isinstance(tree, Mapping):
                return {part: walk(child, f"{name}/{part}") for part, child in tree.items()}
            return tree

        return state.replace(params={name: walk(tree, name) for name, tree in state.params.items()})

    return start


def _maker(ghn: GHN, ghn_params: Any, graph: ModuleGraph, order: Sequence[Place]) -> Callable[[Any, Key], Any]:
    """``tree = make(old, key)``: the old tree with the predicted tensors, in ``order``, in it, on the same devices.

    A tensor of several axes that the module starts at zero on purpose (the last one of a residual branch) stays zero.
    """

    @jax.jit
    def predict(ghn_params: Any, key: Key) -> Any:
        tensors, pieces = predict_params(ghn, ghn_params, graph)
        return list(postprocess(key, tensors, pieces, noise=NOISE, spread="he").values())

    def make(old: Any, key: Key) -> Any:
        made = dict(zip(order, predict(ghn_params, key), strict=True))
        leaves = {tuple(name.split("/")): leaf for name, leaf in trees.named_leaves(old).items()}
        kept = {path: x for path, x in made.items() if x.ndim < 2 or bool(jnp.any(leaves[path] != 0))}
        return jax.tree.map(lambda new, like: jax.device_put(new, like.sharding), graft(old, kept), old)

    return make
