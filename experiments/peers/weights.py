"""Brings Flax parameters into a peer, to see that both compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn


def copy_weights(net: nn.Module, params: Any, stats: Any = None) -> None:
    """Sets all parameters (and running statistics) of a net from the Flax trees of ours.

    Attributes have the names of the Flax submodules. A module in a list takes its row of leaves that are stacked (by
    ``nn.scan`` or ``nn.vmap``). A module with parameters of another layout has a method ``take(tree)``.
    """
    with torch.no_grad():
        for path, module in net.named_modules():
            if hasattr(module, "take"):
                module.take(find(params, path))
        own = {f"{path}.": module for path, module in net.named_modules() if hasattr(module, "take")}
        for path, module in net.named_modules():
            if any(f"{path}.".startswith(start) for start in own):
                continue
            for name, leaf in module.named_parameters(recurse=False):
                leaf.copy_(torch.from_numpy(np.array(arrange(module, name, find(params, path)))))
            if stats and isinstance(module, nn.BatchNorm2d):
                running = find(stats, path)
                module.running_mean.copy_(torch.from_numpy(np.array(running["mean"])))
                module.running_var.copy_(torch.from_numpy(np.array(running["var"])))


def find(tree: Any, path: str) -> Any:
    """Walks to a module's subtree; a number takes a row of the stacked leaves, or is part of a list's name."""
    parts, rows = [part for part in path.split(".") if part], []
    while parts:
        head = parts.pop(0)
        if parts and parts[0].isdigit() and f"{head}_{parts[0]}" in tree:
            tree = tree[f"{head}_{parts.pop(0)}"]
        elif head.isdigit():
            rows.append(int(head))
        else:
            tree = tree[head]
    return take_rows(tree, tuple(rows))


def take_rows(tree: Any, rows: tuple[int, ...]) -> Any:
    if isinstance(tree, Mapping):
        return {name: take_rows(part, rows) for name, part in tree.items()}
    return np.asarray(tree)[rows]


def arrange(module: nn.Module, name: str, node: Any) -> np.ndarray:
    """One of a module's parameters in PyTorch's order of axes."""
    if name == "bias":
        return node["bias"]
    if isinstance(module, nn.Conv2d):
        kernel = node["kernel"] if isinstance(node, Mapping) else node
        return kernel.T[..., None, None] if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)  # 2: a dense layer's
    if isinstance(module, nn.ConvTranspose2d):
        return node["kernel"].transpose(2, 3, 0, 1)
    if isinstance(module, nn.Linear):
        return node["kernel"].T
    if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
        return node["scale"]
    return node[name]
