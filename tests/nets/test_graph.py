"""The graph of a module: known nets, axis roles, what is left out and why, invariances (hyperinit spec, (k) 1-9)."""

import functools
import math
from collections import deque

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from ophjax.errors import InputError
from ophjax.nets.graph import NORMS, OPS, WEIGHTS, ModuleGraph, trace_graph

IMAGE = zoo.IMAGE


@functools.cache
def graph_of(name: str) -> ModuleGraph:
    return trace_graph(*zoo.ZOO[name])


def structure(graph: ModuleGraph) -> tuple:
    """All of a graph but the names of modules."""
    nodes = [
        (n.op, n.size, [(leaf.shape, leaf.role, leaf.out, leaf.fan, leaf.space, leaf.groups) for leaf in n.leaves])
        for n in graph.nodes
    ]
    return nodes, graph.edges


COUNTS = {
    "plain": dict(input=1, max_pool=2, glob_avg=1, conv=2, dense=1, bias=3, bn=2),
    "resnet": dict(input=1, sum=3, glob_avg=1, conv=9, dense=1, bias=1, bn=9),
    "unet": dict(input=1, concat=2, max_pool=2, conv=11, conv_t=2, bias=13, gn=10),
    "unet-resize": dict(input=1, concat=2, max_pool=2, conv=13, bias=13, gn=10),
    "vit": dict(input=1, sum=4, msa=2, conv=1, dense=13, bias=14, ln=5, embed=2),
    "vit-fused": dict(input=1, sum=4, msa=2, conv=1, dense=9, bias=10, ln=5, embed=2),
    "densenet": dict(input=1, concat=6, avg_pool=1, glob_avg=1, conv=8, dense=1, bias=1, bn=8),
    "mobile": dict(input=1, sum=2, gate=2, glob_avg=3, conv=5, dw_conv=2, dense=5, bias=5, bn=7),
    "convnext": dict(input=1, sum=2, glob_avg=1, conv=1, dw_conv=2, dense=5, bias=8, ln=4, scale=2),
    "3d": dict(input=1, glob_avg=1, conv=2, dense=1, bias=3, inorm=2),
    "grouped": dict(input=1, glob_avg=1, conv=2, dil_conv=1, dw_conv=1, dense=1, bias=5),
    "shared": dict(input=1, sum=2, glob_avg=1, conv=3, dense=1, bias=4, ln=2),
    "two-heads": dict(input=1, output=1, glob_avg=1, conv=2, dense=1, bias=3),
    "recurrent": dict(input=1, other=2, dense=2, bias=2),
    "tokens": dict(input=1, dense=2, bias=1, ln=1, embed=1),
    "fourier": dict(input=1, sum=1, glob_avg=1, conv=1, dense=2, bias=2, scale=1),
}

# What is not predicted: a word of the reason, and the paths (of "recurrent" only how many).
FALLBACK = {
    "vit": {"class token": ["token"]},
    "vit-fused": {"class token": ["token"]},
    "convnext": {"layer scale": ["gamma0", "gamma1"]},
    "grouped": {"kernel is computed": ["weight_norm/normalised/kernel/scale"]},
    "recurrent": {"lax.scan": 12},
    "fourier": {"complex": ["filter"], "kernel is computed": ["down", "up"], "not used": ["unused"]},
}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_known_net_has_these_nodes(name):
    assert graph_of(name).counts() == {op: COUNTS[name][op] for op in OPS if op in COUNTS[name]}


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_tensor_is_predicted_once_or_listed_with_its_reason(name):
    """Check (k) 2: together they are exactly the tree of ``module.init``."""
    module, x = zoo.ZOO[name]
    graph = graph_of(name)
    kwargs = {"train": True} if name in ("plain", "resnet", "vit", "vit-fused", "densenet", "mobile") else {}
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **kwargs), x)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    expected = [(tuple(key.key for key in path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves]
    assert list(graph.shapes) == expected
    predicted, own = list(graph.first_uses()), [path for path, _ in graph.fallback]
    assert sorted(predicted + own) == sorted(path for path, _, _ in expected)
    for word, paths in FALLBACK.get(name, {}).items():
        found = ["/".join(path) for path, reason in graph.fallback if word in reason]
        assert len(found) == paths if isinstance(paths, int) else sorted(found) == paths
    listed = FALLBACK.get(name, {}).values()
    assert len(own) == sum(paths if isinstance(paths, int) else len(paths) for paths in listed)
    assert f"{len(predicted)} of {len(expected)} tensors" in str(graph)
    assert all(reason in str(graph) for _, reason in graph.fallback)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_graph_is_ordered_connected_and_has_one_end(name):
    """Check (k) 3."""
    graph = graph_of(name)
    count = len(graph.nodes)
    assert all(source < target for source, target in graph.edges)
    assert sorted(set(graph.edges)) == list(graph.edges)
    distances = graph.distances(cutoff=count)
    assert graph.nodes[0].op == "input" and (distances[0, 1:] > 0).all()
    assert [i for i in range(count) if i not in {source for source, _ in graph.edges}] == [count - 1]
    assert (distances[:-1, -1] > 0).all()
    assert hash(graph) == hash(trace_graph(*zoo.ZOO[name])) and graph == trace_graph(*zoo.ZOO[name])


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_axis_has_one_role_and_sizes_follow_from_them(name):
    for node in graph_of(name).nodes:
        assert (node.size is None) == (
            node.op in ("input", "output", "sum", "concat", "gate", "msa", "other", "glob_avg")
        )
        assert len(node.leaves) <= (2 if node.op in NORMS else 1)
        for leaf in node.leaves:
            axes = leaf.out + leaf.fan + leaf.space
            assert sorted(axes) == list(range(len(leaf.shape)))
            out, fan = (math.prod(leaf.shape[axis] for axis in role) for role in (leaf.out, leaf.fan))
            sides = (1, 1, *(leaf.shape[axis] for axis in leaf.space))[-2:]
            assert node.size == (out, fan, *sides)


# net, path, op, out, fan, space, groups
ROLES = [
    ("unet", "down0_conv1/kernel", "conv", (3,), (2,), (0, 1), 1),
    ("unet", "up0/kernel", "conv_t", (3,), (2,), (0, 1), 1),
    ("vit", "attend0/query/kernel", "dense", (1, 2), (0,), (), 1),
    ("vit", "attend0/query/bias", "bias", (0, 1), (), (), 1),
    ("vit", "attend0/out/kernel", "dense", (2,), (0, 1), (), 1),
    ("vit", "position", "embed", (2,), (0, 1), (), 1),
    ("mobile", "depthwise0/kernel", "dw_conv", (3,), (2,), (0, 1), 16),
    ("grouped", "grouped/kernel", "dw_conv", (3,), (2,), (0, 1), 2),
    ("grouped", "dilated/kernel", "dil_conv", (3,), (2,), (0, 1), 1),
    ("grouped", "normalised/kernel", "conv", (3,), (2,), (0, 1), 1),
    ("3d", "conv0/kernel", "conv", (4,), (3,), (0, 1, 2), 1),
    ("tokens", "words/embedding", "embed", (1,), (0,), (), 1),
    ("plain", "norm0/scale", "bn", (0,), (), (), 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "op", "out", "fan", "space", "groups"), ROLES)
def test_axis_roles(name, path, op, out, fan, space, groups):
    node, leaf = graph_of(name).first_uses()[tuple(path.split("/"))]
    assert graph_of(name).nodes[node].op == op
    assert (leaf.out, leaf.fan, leaf.space, leaf.groups) == (out, fan, space, groups)


def test_residual_blocks_are_wired_as_written():
    graph = graph_of("resnet")
    node = {"/".join(path): i for path, (i, _) in graph.first_uses().items()}
    before = {t: sorted(s for s, other in graph.edges if other == t) for _, t in graph.edges}
    first = before[before[node["block1/conv1/kernel"]][0]]
    # The first sum joins the stem's norm and the block's own.
    assert first == sorted([node["stem_norm/scale"], node["block0/conv2_norm/scale"]])
    last = before[node["head/kernel"]][0]
    assert graph.nodes[last].op == "glob_avg"
    assert before[before[last][0]] == sorted([node["block2/project_norm/scale"], node["block2/conv2_norm/scale"]])


def test_attention_joins_query_key_and_value():
    graph = graph_of("vit")
    node = {"/".join(path): i for path, (i, _) in graph.first_uses().items()}
    msa = next(i for i, one in enumerate(graph.nodes) if one.op == "msa")
    assert [s for s, t in graph.edges if t == msa] == sorted(
        node[f"attend0/{p}/bias"] for p in ("query", "key", "value")
    )


def test_heads():
    assert graph_of("two-heads").head == (
        ("label", "kernel"), ("label", "bias"), ("mask", "kernel"), ("mask", "bias"),
    )  # fmt: skip
    assert graph_of("unet").head == (("head", "kernel"), ("head", "bias"))
    assert graph_of("tokens").head == ()  # the table is decoded where words are looked up
    trunk = nn.Sequential([nn.Conv(4, (3, 3)), nn.LayerNorm()])
    assert trace_graph(trunk, IMAGE).head == ()


def test_a_shared_module_has_a_node_for_each_use_and_is_decoded_from_the_first():
    graph = graph_of("shared")
    uses = [(i, leaf.use) for i, n in enumerate(graph.nodes) for leaf in n.leaves if leaf.path == ("shared", "kernel")]
    assert [use for _, use in uses] == [0, 1]
    assert graph.first_uses()["shared", "kernel"][0] == uses[0][0]


def by_search(count: int, edges: tuple[tuple[int, int], ...]) -> np.ndarray:
    found = np.zeros((count, count), int)
    for start in range(count):
        todo, seen = deque([(start, 0)]), {start}
        while todo:
            node, steps = todo.popleft()
            found[start, node] = steps
            for source, target in edges:
                if source == node and target not in seen:
                    seen.add(target)
                    todo.append((target, steps + 1))
    return found


@pytest.mark.parametrize("name", ["unet", "densenet", "vit"])
def test_distances_are_shortest_paths(name):
    graph = graph_of(name)
    expected = by_search(len(graph.nodes), graph.edges)
    np.testing.assert_array_equal(graph.distances(cutoff=len(graph.nodes)), expected)
    np.testing.assert_array_equal(graph.distances(cutoff=3), np.where(expected > 3, 0, expected))
    np.testing.assert_array_equal(graph.levels(), expected[0])
    assert graph.distances().dtype == np.int32


@pytest.mark.parametrize("name", ["unet", "shared", "tokens"])
def test_renumbered_nodes_are_the_same_graph(name):
    """Check (k) 6."""
    graph = graph_of(name)
    order = np.random.default_rng(0).permutation(len(graph.nodes))
    other = graph.relabelled(order.tolist())
    np.testing.assert_array_equal(other.distances(), graph.distances()[np.ix_(order, order)])
    np.testing.assert_array_equal(other.levels(), graph.levels()[order])
    assert {path: (order[i], leaf) for path, (i, leaf) in other.first_uses().items()} == graph.first_uses()
    assert other.head == graph.head and other.counts() == graph.counts()
    with pytest.raises(InputError, match="must name each"):
        graph.relabelled([0, 0])


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_remat_and_jit_change_nothing(lift):
    """Check (k) 8."""
    lifted = trace_graph(zoo.ResNet(block=lift(zoo.ResBlock)), IMAGE)
    assert structure(lifted) == structure(graph_of("resnet"))
    assert {path[-2:] for path, _, _ in lifted.shapes} == {path[-2:] for path, _, _ in graph_of("resnet").shapes}
    assert trace_graph(lift(zoo.UNet)(), IMAGE) == graph_of("unet")


def test_names_of_modules_change_nothing():
    """Check (k) 8."""

    class Named(nn.Module):
        names: tuple[str, ...]

        @nn.compact
        def __call__(self, x, *, train):
            x = nn.relu(nn.Conv(4, (3, 3), name=self.names[0])(x))
            x = nn.BatchNorm(use_running_average=not train, name=self.names[1])(x)
            return nn.Dense(2, name=self.names[2])(x.mean((1, 2)))

    one, other = (trace_graph(Named(names), IMAGE) for names in (("a", "b", "c"), ("z", "norm", "bias")))
    assert structure(one) == structure(other)


@pytest.mark.parametrize("name", ["resnet", "unet", "unet-resize", "densenet", "mobile", "convnext", "grouped"])
@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (8, 48, 32, 3)])
def test_batch_and_resolution_change_nothing(name, shape):
    """Check (k) 9."""
    assert trace_graph(zoo.ZOO[name][0], jax.ShapeDtypeStruct(shape, jnp.float32)) == graph_of(name)


@pytest.mark.parametrize("name", ["resnet", "mobile", "densenet"])
def test_evaluation_mode_has_the_same_graph(name):
    assert trace_graph(zoo.ZOO[name][0], IMAGE, train_kwargs={"train": False}) == graph_of(name)


def test_dtypes_are_kept():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), param_dtype=jnp.bfloat16, name="conv")(x)
            x = nn.GroupNorm(2, dtype=jnp.bfloat16, name="norm")(x)
            return nn.Dense(2, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, name="head")(x.mean((1, 2)))

    graph = trace_graph(Half(), IMAGE)
    assert [node.op for node in graph.nodes] == ["input", "conv", "bias", "gn", "glob_avg", "dense", "bias"]
    assert {path[0]: dtype for path, _, dtype in graph.shapes} == dict(conv="bfloat16", norm="float32", head="bfloat16")
    assert all(leaf.dtype == "bfloat16" for leaf in graph.nodes[1].leaves)


def test_nothing_is_computed():
    """Images of a petabyte."""
    huge = jax.ShapeDtypeStruct((10**6, 2**14, 2**14, 3), jnp.float32)
    assert trace_graph(zoo.Plain(), huge) == graph_of("plain")


def test_bad_input_is_one_paragraph():
    with pytest.raises(InputError, match=r"Plain could not be called with float32\[2, 5\].*train_kwargs"):
        trace_graph(zoo.Plain(), jax.ShapeDtypeStruct((2, 5), jnp.float32))
    with pytest.raises(InputError, match="no parameters"):
        trace_graph(nn.LayerNorm(use_bias=False, use_scale=False), IMAGE)
    with pytest.raises(InputError, match="expected an instance"):
        trace_graph(zoo.Plain, IMAGE)


def test_weights_and_norms_are_kinds_of_nodes():
    assert set(WEIGHTS) | set(NORMS) < set(OPS) and len(set(OPS)) == len(OPS)
