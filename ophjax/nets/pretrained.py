"""Pretrained ResNets, EfficientNet-B2 and vision transformers from files with torchvision's or timm's names.

They go into any network that has such a backbone, which is found in its parameters by its structure. All of it is
taken, statistics included; heads are not. Where the first convolution has other inputs than red, green and blue, it is
adapted, see ``adapt_input``; a vision transformer's positions are brought to another grid, see ``adapt_positions``. The
files' convolutional nets expect pictures normalised by ImageNet's mean and deviation; ours keep their own scale, which
the batch norm behind the first convolution takes up in training (our decision).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ophjax.errors import InputError
from ophjax.nets.superres_weights import Tensors, read_weights

SUFFIXES = (".safetensors", ".pt", ".pth")
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_BLOCK = {"conv": "conv{}", "norm": "bn{}"}
# EfficientNet: names in torchvision (place of the layer among expand, depthwise, squeeze-excite, project) and in timm.
_TORCHVISION = {
    "expand": "0.0", "expand_norm": "0.1", "depthwise": "1.0", "depthwise_norm": "1.1", "squeeze": "2.fc1",
    "excite": "2.fc2", "project": "3.0", "project_norm": "3.1",
}  # fmt: skip
_TIMM = {
    "expand": "conv_pw", "expand_norm": "bn1", "depthwise": "conv_dw", "depthwise_norm": "bn2",
    "squeeze": "se.conv_reduce", "excite": "se.conv_expand", "project": "conv_pwl", "project_norm": "bn3",
}  # fmt: skip
_TIMM_FIRST = _TIMM | {"depthwise_norm": "bn1", "project": "conv_pw", "project_norm": "bn2"}
# Vision transformers, timm's names: layers, a block's layers, and what belongs to no layer.
_VIT = {"patches": "patch_embed.proj", "norm": "norm"}
_VIT_BLOCK = {
    "norm": "norm1", "qkv": "attn.qkv", "out": "attn.proj",
    "feed_forward/norm": "norm2", "feed_forward/expand": "mlp.fc1", "feed_forward/contract": "mlp.fc2",
}  # fmt: skip
_VIT_TABLES = {"token": "cls_token", "token_position": "pos_embed", "position": "pos_embed"}
_HINT = (
    "Its names must be torchvision's or timm's, and depth, width 64 and --method.stem imagenet those of the file's net."
)
_VIT_HINT = "Its names must be timm's, and --method.vit-patch, vit-width and vit-depth those of the file's net."


def find_backbones(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Lists the backbones in a tree of parameters by path: ``"resnet"``, ``"slices"`` (a ResNet over the slices of a
    volume, whose stem stands beside it), ``"efficientnet"`` or ``"vit"``."""
    found: dict[str, str] = {}
    if "first" in params and "stage1" in params and "block1" in params["stage1"]:
        found[prefix] = "resnet"
    elif "stage1_first" in params:
        found[prefix] = "efficientnet"
    elif "patches" in params and "token_position" in params:
        found[prefix] = "vit"
    elif "kernel" in params.get("stem", ()) and "block1" in params.get("trunk", {}).get("stage1", ()):
        found[prefix] = "slices"
    else:
        for name, child in params.items():
            if isinstance(child, Mapping):
                found |= find_backbones(child, f"{prefix}/{name}" if prefix else name)
    return found


def adapt_input(kernel: np.ndarray, channels: int, *, slices: bool = False) -> np.ndarray:
    """Adapts a first convolution [k, k, 3, d] to other inputs than red, green and blue (our decisions).

    More than three: the picture's as they are and zeros for the others (masks beside a picture), so that the net starts
    as what it was. Fewer, or ``slices`` of a volume: the sum over red, green and blue divided by the number of inputs,
    for each. One grey input then gives what its threefold copy gave; slices give what the grey image of their mean
    gave, and the scale stays.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 3 or (channels == 3 and not slices):
        return kernel
    if slices or channels < 3:
        return np.repeat(kernel.sum(2, keepdims=True) / channels, channels, 2)
    rest = np.zeros((*kernel.shape[:2], channels - 3, kernel.shape[3]), kernel.dtype)
    return np.concatenate([kernel, rest], 2)


def adapt_positions(table: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Takes the patches' positions [rows, columns, d] out of a file's table [1, 1 + n, d], where the token's is first.

    The file's patches must lie on a square, else the table comes back as it is. Another grid is interpolated as timm
    does it: cubic (Keys' kernel, a = -0.5), widened where the grid gets coarser (antialias).
    """
    side = math.isqrt(max(table.shape[1] - 1, 0)) if table.ndim == 3 else 0
    if side == 0 or table.shape[:2] != (1, 1 + side * side):
        return table
    grid = table[0, 1:].reshape(side, side, -1)
    if (rows, columns) == (side, side):
        return grid
    return np.asarray(jax.image.resize(grid, (rows, columns, grid.shape[2]), "cubic", antialias=True))


def load_backbone(source: Path, params: Any, stats: Any, where: str) -> tuple[Any, Any]:
    """Puts a file's weights into one network.

    Args:
      source: safetensors, or where torch is installed ``.pt`` or ``.pth``.
      params, stats: of the network, arrays or shapes; ``stats`` may be None or empty.
      where: ``NETWORK`` where it has one backbone, or ``NETWORK/PATH``.

    Returns:
      Both, with NumPy arrays in the place of what was taken.

    Raises:
      InputError: the file cannot be read, the network has no such backbone, or names or shapes do not fit; the message
        lists them.
    """
    network, _, asked = where.partition("/")
    known = find_backbones(params)
    listed = ", ".join(f"{network}/{path}" if path else network for path in known) or "none"
    if (not asked and len(known) != 1) or (asked and asked not in known):
        raise InputError(
            f"--start-from {where}={source}: the backbones of {network!r} that weights can be put into are {listed}. "
            "Name one of these; a ResNet's options are --method.stem imagenet and a batch norm."
        )
    path, kind = (asked, known[asked]) if asked else next(iter(known.items()))
    tensors = {name.removeprefix("module."): value for name, value in read_weights(source).items()}
    flat = {part: flatten_dict(tree or {}, sep="/") for part, tree in (("params", params), ("stats", stats))}
    inside = f"{path}/" if path else ""
    own = {
        part: {name.removeprefix(inside): leaf for name, leaf in leaves.items() if name.startswith(inside)}
        for part, leaves in flat.items()
    }
    if not own["stats"] and kind != "vit":
        raise InputError(
            f"--start-from {where}={source}: {network!r} has no batch norm, which the file's weights are made for. "
            "Give --method.norm batch (or the option that norms this network)."
        )
    naming = _efficientnet(tensors) if kind == "efficientnet" else _vit if kind == "vit" else _resnet
    taken: dict[str, dict[str, np.ndarray]] = {"params": {}, "stats": {}}
    missing, wrong, used = [], [], set[str]()
    for part, leaf_path, leaf in ((part, name, leaf) for part, leaves in own.items() for name, leaf in leaves.items()):
        names = list(naming(leaf_path.removeprefix("trunk/") if kind == "slices" else leaf_path, leaf.shape))
        absent = [name for name in names if name not in tensors]
        missing += absent
        used.update(names)
        if not names or absent:
            continue
        arrays = [_turn(np.asarray(tensors[name], np.float32)) for name in names]
        if leaf_path in ("first/conv/kernel", "stem/kernel", "patches/kernel"):
            arrays = [adapt_input(one, leaf.shape[2], slices=kind == "slices") for one in arrays]
        elif kind == "vit" and leaf_path == "position":
            arrays = [adapt_positions(arrays[0], *leaf.shape[:2])]
        elif kind == "vit" and leaf_path in _VIT_TABLES and arrays[0].ndim == 3:
            arrays = [arrays[0][:1, :1].reshape(-1)]
        stacked = "_rest/" in leaf_path or leaf_path.startswith("blocks/")
        odd = next((i for i, one in enumerate(arrays) if one.shape != arrays[0].shape), 0)
        value = np.stack(arrays) if stacked and not odd else arrays[odd]
        if value.shape != leaf.shape:
            wrong.append(f"{names[odd]} {list(tensors[names[odd]].shape)} for {leaf_path} {list(leaf.shape)}")
        taken[part][f"{inside}{leaf_path}"] = value
    # What a vision transformer would leave out of a file changes what its blocks compute, but for the head.
    more = [name for name in tensors if kind == "vit" and name not in used and not name.startswith("head")]
    if missing or wrong or more:
        said = f"lacks {len(missing)} tensors ({_some(missing)})" if missing else "has other shapes" if wrong else ""
        said += f"; shapes that differ: {_some(wrong)}" if wrong else ""
        said += f"{'; ' if said else ''}has {len(more)} tensors without a place here ({_some(more)})" if more else ""
        raise InputError(f"--start-from {where}={source}: the file {said}. {_VIT_HINT if kind == 'vit' else _HINT}")
    new = {part: unflatten_dict({**flat[part], **taken[part]}, sep="/") for part in flat}
    return new["params"], new["stats"] if flat["stats"] else stats


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _turn(tensor: np.ndarray) -> np.ndarray:
    """Brings the kernel of a convolution or a linear layer from PyTorch's order of axes into ours."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor


def _resnet(path: str, shape: tuple[int, ...]) -> Iterator[str]:
    """The tensor of a leaf; none for the head, which is not taken."""
    del shape
    parts = path.split("/")
    last = _NORM.get(parts[-1], "weight")
    if parts[0] in ("first", "stem"):
        yield f"bn1.{last}" if "norm" in parts else "conv1.weight"
    elif block := re.fullmatch(r"stage(\d)/block(\d+)/(conv|norm)(\w+)/\w+", path):
        stage, number, kind, which = block.groups()
        place = f"downsample.{int(kind == 'norm')}" if which == "_shortcut" else _BLOCK[kind].format(which)
        yield f"layer{stage}.{int(number) - 1}.{place}.{last}"


def _vit(path: str, shape: tuple[int, ...]) -> Iterator[str]:
    """The tensor of a leaf, or one for each of the blocks; none for the head."""
    layer, _, leaf = path.rpartition("/")
    last = _NORM.get(leaf, "weight")
    if path in _VIT_TABLES:
        yield _VIT_TABLES[path]
    elif layer in _VIT:
        yield f"{_VIT[layer]}.{last}"
    elif layer.startswith("blocks/"):
        for block in range(shape[0]):
            yield f"blocks.{block}.{_VIT_BLOCK[layer.removeprefix('blocks/')]}.{last}"


def _efficientnet(tensors: Tensors) -> Callable[[str, tuple[int, ...]], Iterator[str]]:
    """The tensors of a leaf, one for each of the blocks whose parameters are stacked."""
    timm = "conv_stem.weight" in tensors
    ends = {"stem": "conv_stem", "stem_norm": "bn1", "head": "conv_head", "head_norm": "bn2"} if timm else {
        "stem": "features.0.0", "stem_norm": "features.0.1", "head": "features.8.0", "head_norm": "features.8.1",
    }  # fmt: skip

    def naming(path: str, shape: tuple[int, ...]) -> Iterator[str]:
        parts = path.split("/")
        last = _NORM.get(parts[-1], "weight")
        if parts[0] in ends:
            yield f"{ends[parts[0]]}.{last}"
            return
        stage, which = parts[0].removeprefix("stage").split("_")
        for block in [0] if which == "first" else range(1, shape[0] + 1):
            if timm:
                names = _TIMM_FIRST if stage == "1" else _TIMM
                yield f"blocks.{int(stage) - 1}.{block}.{names[parts[1]]}.{last}"
            else:
                place, _, rest = _TORCHVISION[parts[1]].partition(".")
                # Without an expansion the layers stand one place further ahead.
                yield f"features.{stage}.{block}.block.{int(place) - (stage == '1')}.{rest}.{last}"

    return naming
