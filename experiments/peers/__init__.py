"""The methods' networks and training steps in plain PyTorch, to time ours against (``bench.py --peer torch``).

Each is written from the method's spec and from our own Flax nets: the same layers, as many parameters, the main loss,
the same optimiser. What the data set's pictures go through before they reach the net is left out on both sides
(``WITHOUT`` of each file: changes to the method's configuration).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from ophjax.errors import InputError

PEERS: dict[str, str] = {
    "seatrans": "peers.seatrans",
    "fccl": "peers.fccl",
    "m2dan": "peers.m2dan",
    "ads": "peers.ads",
    "diff": "peers.diff",
    "selfcal": "peers.selfcal",
    "goals": "peers.goals",
    "gamma": "peers.gamma",
    "dualsr": "peers.dualsr",
}


class Move(NamedTuple):
    """One step of an optimiser.

    Attributes:
      loss: ``value, left = loss(batch, left)``: of the batch and what the move before it left (None at first).
      trains: names of the networks that it changes; the others get no gradient.
      optimiser: ``optimiser({name: parameters})``.
      clip: each component of the gradient is cut at this size; 0: not at all.
    """

    loss: Callable[[dict[str, Any], Any], tuple[Any, Any]]
    trains: tuple[str, ...]
    optimiser: Callable[[dict[str, list[Any]]], Any]
    clip: float = 0.0


class Peer(NamedTuple):
    """A method in PyTorch: its networks by the names of ours, and the moves of a step of each stage that is written."""

    nets: dict[str, Any]
    stages: dict[str, tuple[Move, ...]]


def load(method: str) -> ModuleType:
    """Imports a method's peer: ``make(config, shapes) -> Peer``, and ``WITHOUT``.

    ``shapes`` are those of a batch, as ours has them (the channels last). A peer's batch has the channels first.

    Raises:
      InputError: the method has no peer, or PyTorch is not installed.
    """
    if method not in PEERS:
        raise InputError(
            f"--peer torch was asked for with --method {method}, which has no peer in PyTorch. These have one: "
            f"{', '.join(PEERS)}. Choose one of them, or leave --peer out."
        )
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "--peer torch times PyTorch beside JAX, but PyTorch is not installed here. Install it: pip install torch "
            "(or pip install 'ophjax[peer]'), or leave --peer out."
        )
    return importlib.import_module(PEERS[method])
