"""Weights of DRN in the names and layout of the released PyTorch program, both ways.

Files are safetensors. A ``.pt`` file is read only where PyTorch is installed, and as tensors only
(``weights_only``): a pickle can run any program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ophjax.errors import InputError
from ophjax.nets.superres import DRN, MEAN, inner_of, phases_of, stage_starts

Tensors = dict[str, np.ndarray]


def to_state_dict(net: DRN, params: Any) -> Tensors:
    """Writes parameters under the released program's names; constant mean shifts are written as its 1x1 convolutions.

    Args:
      net: the network, dense or compact.
      params: its parameters.
    """
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(params, sep="/").items()}
    found: Tensors = {}

    def conv(name: str, kernel: np.ndarray, bias: np.ndarray | None = None) -> None:
        found[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        if bias is not None:
            found[f"{name}.bias"] = bias

    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        eye, mean = np.eye(3, dtype=np.float32)[None, None], sign * np.array(MEAN, np.float32)
        conv(name, flat.get(f"{name}/kernel", eye), flat.get(f"{name}/bias", mean))
    conv("head", flat["head/kernel"], flat["head/bias"])
    for p in range(phases_of(net.scale)):
        conv(f"down.{p}.dual_module.0.0", flat[f"down{p}/conv1/kernel"])
        conv(f"down.{p}.dual_module.1", flat[f"down{p}/conv2/kernel"])
    inner = inner_of(net)
    for i, first in enumerate(stage_starts(net)):
        stage = {path.partition("/")[2]: leaf for path, leaf in flat.items() if path.startswith(f"stage{i}/")}
        ends = np.cumsum(inner[first : first + net.blocks])
        for r, (end, count) in enumerate(zip(ends, inner[first:], strict=False)):
            own, body = slice(end - count, end), f"up_blocks.{i}.{r}.body"
            conv(f"{body}.0", stage["conv1_kernel"][..., own], stage["conv1_bias"][own])
            conv(f"{body}.2", stage["conv2_kernel"][:, :, own], stage["conv2_bias"][r])
            conv(f"{body}.3.conv_du.0", stage["squeeze_kernel"][r][None, None], stage["squeeze_bias"][r])
            conv(f"{body}.3.conv_du.2", stage["excite_kernel"][r][None, None], stage["excite_bias"][r])
        conv(f"up_blocks.{i}.{net.blocks}.0", flat[f"up{i}/kernel"], flat[f"up{i}/bias"])
        conv(f"up_blocks.{i}.{net.blocks + 1}", flat[f"project{i}/kernel"], flat[f"project{i}/bias"])
    for i in range(phases_of(net.scale) + 1):
        conv(f"tail.{i}", flat[f"tail{i}/kernel"], flat[f"tail{i}/bias"])
    return found


def from_state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[DRN, Any]:
    """Reads a state dict of the released program: the network, whose size its shapes tell, and the parameters.

    The mean shifts stay learned 1x1 convolutions: folded into the head they would differ along the border.

    Raises:
      InputError: a tensor is missing, superfluous or has a shape that does not fit.
    """
    given = {name.removeprefix("module."): np.asarray(value, np.float32) for name, value in tensors.items()}
    used: set[str] = set()

    def take(name: str) -> np.ndarray:
        if name not in given:
            raise InputError(
                f"The weights lack {name!r}; they have {len(given)} tensors, such as {', '.join(sorted(given)[:4])}. "
                "Give the state dict of a DRN primal model."
            )
        used.add(name)
        return given[name]

    def kernel(name: str) -> np.ndarray:
        weight = take(f"{name}.weight")
        if weight.ndim != 4:
            raise InputError(
                f"The weights' {name}.weight has the shape {weight.shape}; expected that of a convolution."
            )
        return weight.transpose(2, 3, 1, 0)

    def numbers(pattern: str) -> int:
        return len({found[1] for name in given if (found := re.match(pattern, name))})

    phases, blocks = numbers(r"down\.(\d+)\."), numbers(r"up_blocks\.0\.(\d+)\.body\.0\.")
    flat: Tensors = {}
    for name in ("sub_mean", "add_mean", "head"):
        flat |= {f"{name}/kernel": kernel(name), f"{name}/bias": take(f"{name}.bias")}
    inner: list[int] = []
    for p in range(phases):
        flat[f"down{p}/conv1/kernel"] = kernel(f"down.{p}.dual_module.0.0")
        flat[f"down{p}/conv2/kernel"] = kernel(f"down.{p}.dual_module.1")
        inner.append(flat[f"down{p}/conv1/kernel"].shape[3])
    for i in range(phases):
        bodies = [f"up_blocks.{i}.{r}.body" for r in range(blocks)]
        first = [kernel(f"{body}.0") for body in bodies]
        inner += [found.shape[3] for found in first]
        flat |= {
            f"stage{i}/conv1_kernel": np.concatenate(first, 3),
            f"stage{i}/conv1_bias": np.concatenate([take(f"{body}.0.bias") for body in bodies]),
            f"stage{i}/conv2_kernel": np.concatenate([kernel(f"{body}.2") for body in bodies], 2),
            f"stage{i}/conv2_bias": np.stack([take(f"{body}.2.bias") for body in bodies]),
        }
        for name, layer in (("squeeze", "3.conv_du.0"), ("excite", "3.conv_du.2")):
            flat[f"stage{i}/{name}_kernel"] = np.stack([kernel(f"{body}.{layer}")[0, 0] for body in bodies])
            flat[f"stage{i}/{name}_bias"] = np.stack([take(f"{body}.{layer}.bias") for body in bodies])
        up, project = f"up_blocks.{i}.{blocks}.0", f"up_blocks.{i}.{blocks + 1}"
        flat |= {f"up{i}/kernel": kernel(up), f"up{i}/bias": take(f"{up}.bias")}
        flat |= {f"project{i}/kernel": kernel(project), f"project{i}/bias": take(f"{project}.bias")}
        inner.append(flat[f"up{i}/kernel"].shape[3] // 4)
    for i in range(phases + 1):
        flat |= {f"tail{i}/kernel": kernel(f"tail.{i}"), f"tail{i}/bias": take(f"tail.{i}.bias")}
    if extra := sorted(given.keys() - used):
        raise InputError(f"The weights hold {len(extra)} tensors that DRN does not have: {', '.join(extra[:4])}.")
    net = DRN(2**phases, blocks, flat["head/kernel"].shape[3], tuple(inner), learned_mean_shift=True)
    params = unflatten_dict(flat, sep="/")
    _check(net, params)
    return net, params


def dual_to_state_dict(params: Mapping[str, Any]) -> Tensors:
    """Writes the dual networks ``{"to1": ..., "to2": ...}``, coarse to fine, with their number before each name."""
    found: Tensors = {}
    for number, name in enumerate(sorted(params, key=lambda name: int(name.removeprefix("to")))):
        for layer, leaf in (("0.0", "conv1"), ("1", "conv2")):
            kernel = np.asarray(params[name]["halving"][leaf]["kernel"], np.float32)
            found[f"{number}.dual_module.{layer}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    return found


def dual_from_state_dict(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Reads the dual networks written by ``dual_to_state_dict``.

    Raises:
      InputError: the names are others.
    """
    count = len(tensors) // 2
    wanted = {f"{i}.dual_module.{layer}.weight" for i in range(count) for layer in ("0.0", "1")}
    if set(tensors) != wanted or not count:
        raise InputError(f"The weights {', '.join(sorted(tensors)[:4])} are not those of DRN's dual models.")
    return {
        f"to{2**i}": {
            "halving": {
                leaf: {"kernel": np.asarray(tensors[f"{i}.dual_module.{layer}.weight"]).transpose(2, 3, 1, 0)}
                for layer, leaf in (("0.0", "conv1"), ("1", "conv2"))
            }
        }
        for i in range(count)
    }


def read_weights(path: Path) -> Tensors:
    """Reads a safetensors file, or where PyTorch is installed a ``.pt`` file of tensors.

    Raises:
      InputError: the file is missing, damaged, holds other things than tensors, or needs a package that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no weights file {path}. Give a .safetensors or .pt file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        if path.suffix in (".pt", ".pth"):
            import torch

            return _as_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except ImportError as error:
        raise InputError(
            f"Reading {path} needs the package {error.name!r}: safetensors comes with pip install safetensors; a .pt "
            "file needs torch. Or convert it where torch is installed."
        ) from error
    except Exception as error:  # damaged files make both libraries raise many kinds
        raise InputError(f"{path} cannot be read as weights ({type(error).__name__}: {error}). Replace it.") from error
    raise InputError(f"{path} is neither a .safetensors nor a .pt file. Give one of these.")


def write_weights(path: Path, tensors: Tensors) -> None:
    """Writes a safetensors file.

    Raises:
      InputError: the package is missing or the file cannot be written.
    """
    try:
        from safetensors.numpy import save_file

        save_file(tensors, path)
    except ImportError as error:
        raise InputError("Writing weights needs the package safetensors: pip install safetensors.") from error
    except Exception as error:
        raise InputError(f"{path} cannot be written: {error}. Give a folder that can be written.") from error


def _as_arrays(found: Any) -> Tensors:
    """Takes a state dict, or a list of them (the dual models), numbered."""
    if isinstance(found, list | tuple):
        found = {f"{i}.{name}": value for i, part in enumerate(found) for name, value in part.items()}
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


def _check(net: DRN, params: Any) -> None:
    import jax
    import jax.numpy as jnp

    wanted = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    shapes, expected = ({k: v.shape for k, v in flatten_dict(t, sep="/").items()} for t in (params, wanted))
    for path, shape in shapes.items():
        if shape != expected.get(path):
            raise InputError(
                f"The weights do not fit together: {path} has the shape {shape}, expected {expected.get(path)} for a "
                f"DRN of width {net.width} with {net.blocks} blocks at {net.scale}x."
            )
