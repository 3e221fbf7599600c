"""--start-from NETWORK=FILE: pretrained backbones inside the networks of a run."""

from functools import cache

import jax
import numpy as np
import pytest
from made_run import fill
from made_weights import draw_resnet, draw_vit

import presets
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.errors import InputError
from ophjax.nets.pretrained import find_backbones
from ophjax.nets.superres_weights import write_weights
from ophjax.train import loop
from ophjax.train.checkpoint import check_networks, take_networks


@cache
def shapes(name, **changes):
    config, data_config, train = presets.preset("smoke", name)
    data = datasets.load(methods.load(name).DATA).make(data_config)
    config = methods.fit_to(config, data)
    return loop.abstract_state(methods.load(name).make(type(config)(**{**vars(config), **changes})), data, train)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "resnet.safetensors"
    write_weights(path, draw_resnet(10, 8))
    return path


def test_a_backbone_comes_from_a_file_and_nothing_else_changes(weights):
    abstract = shapes("seatrans")
    check_networks(abstract, [f"segmenter={weights}"])
    state = fill(abstract)
    started = take_networks(state, [f"segmenter={weights}"])
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, state)
    tensors = draw_resnet(10, 8)
    encoder = started.params["segmenter"]["encoder"]
    np.testing.assert_array_equal(
        encoder["stage2"]["block1"]["conv2"]["kernel"], tensors["layer2.0.conv2.weight"].transpose(2, 3, 1, 0)
    )
    stats = started.extra["batch_stats"]["segmenter"]["encoder"]
    np.testing.assert_array_equal(stats["first"]["norm"]["var"], tensors["bn1.running_var"])
    old, new = trees.named_leaves(state.params), trees.named_leaves(started.params)
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed and all(path.startswith("segmenter/encoder/") for path in changed)
    assert not any("linear" in path for path in changed)


def test_every_seed_starts_from_the_file(weights):
    """Its head, which the file does not give, each seed keeps."""
    abstract = shapes("seatrans")
    wide = {part: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), getattr(abstract, part))
            for part in ("params", "opt", "extra")}  # fmt: skip
    abstract = abstract.replace(**wide)
    check_networks(abstract, [f"diagnosis={weights}"], seeds=2)
    state = fill(abstract)
    started = take_networks(state, [f"diagnosis={weights}"], seeds=2)
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, state)
    old, new = (trees.named_leaves(one.params["diagnosis"]) for one in (state, started))
    kernel = draw_resnet(10, 8)["layer2.0.conv2.weight"].transpose(2, 3, 1, 0)
    (path,) = (name for name in new if name.endswith("stage2/block1/conv2/kernel"))
    np.testing.assert_array_equal(new[path], [kernel, kernel])
    (path,) = (name for name in new if name.endswith("backbone/linear/kernel"))
    np.testing.assert_array_equal(new[path], old[path])


def test_which_networks_there_are_is_told(weights):
    abstract = shapes("seatrans")
    for given, match in (("brain", "networks diagnosis, segmenter"), ("segmenter/branch", "are segmenter/encoder")):
        with pytest.raises(InputError, match=match):
            check_networks(abstract, [f"{given}={weights}"])
    with pytest.raises(InputError, match="or NETWORK=FILE"):
        check_networks(abstract, ["segmenter=nowhere.safetensors"])


def test_slices_of_a_volume_are_inputs(tmp_path):
    """GAMMA's OCT branch: its wide stem beside the trunk takes the first convolution, spread over the slices."""
    abstract = shapes("gamma", task="grading", depth=18)
    assert find_backbones(abstract.params["grader"]) == {"fundus": "resnet", "oct": "slices"}
    path, tensors = tmp_path / "resnet.safetensors", draw_resnet(18, 2)
    write_weights(path, tensors)
    oct_branch = take_networks(fill(abstract), [f"grader/oct={path}"]).params["grader"]["oct"]
    kernel = oct_branch["stem"]["kernel"]
    assert kernel.shape == (7, 7, 4, 2)
    np.testing.assert_allclose(kernel[:, :, 2], tensors["conv1.weight"].sum(1).transpose(1, 2, 0) / 4, rtol=1e-5)
    np.testing.assert_array_equal(
        oct_branch["trunk"]["stage4"]["block2"]["norm2"]["bias"], tensors["layer4.1.bn2.bias"]
    )


def test_a_vision_transformer_needs_no_batch_norm(tmp_path):
    """FCCL's trunk on images larger than the file's: the classifier's head and the centroids stay."""
    sizes = dict(patch=8, width=32, depth=2)
    abstract = shapes("fccl", trunk="vit", **{f"vit_{name}": size for name, size in sizes.items()})
    path, tensors = tmp_path / "vit.safetensors", draw_vit(**sizes, heads=1, side=3)
    write_weights(path, tensors)
    state = fill(abstract)
    started = take_networks(state, [f"classifier={path}"])
    assert jax.tree.map(np.shape, started) == jax.tree.map(np.shape, state)
    old, new = trees.named_leaves(state.params), trees.named_leaves(started.params)
    changed = {path for path in old if not np.array_equal(old[path], new[path])}
    assert changed == {path for path in old if path.startswith("classifier/backbone/")}
    qkv = started.params["classifier"]["backbone"]["blocks"]["qkv"]["kernel"]
    np.testing.assert_array_equal(qkv[1], tensors["blocks.1.attn.qkv.weight"].T)
