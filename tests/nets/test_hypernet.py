"""The graph hypernetwork: structure, invariances and gradients (spec of hyperinit, section (k), checks 1 to 12)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from made_run import drawn_like

import ophjax
from ophjax import trees
from ophjax.errors import InputError
from ophjax.nets.children import UNSEEN, Architecture, build, draw_architecture, draw_pool
from ophjax.nets.conv import conv2d
from ophjax.nets.features import CHANNELS, SIDES, GHNConfig, featurise, lay_out, nearest
from ophjax.nets.graph import call_options, trace_graph
from ophjax.nets.hyperinit import hyper_init, make_pool, predict_params, recalibrate, unit_bank
from ophjax.nets.hypernet import GHN, Decoder
from ophjax.transforms.generation import assemble, staged_scan

SMALL = GHNConfig(width=16, layers=2, heads=2, channels=8, side=3, classes=4)
IMAGE = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
PLAIN = Architecture("plain", (8, 16), norm="batch", hidden=8)
CORES = pytest.mark.parametrize("core", ["graphormer", "gated"])


@pytest.fixture(scope="module")
def trained():
    """A hypernetwork and drawn parameters by core, once for all tests."""
    made = {}

    def get(core="graphormer"):
        if core not in made:
            config = dataclasses.replace(SMALL, core=core)
            graph = trace_graph(build(PLAIN, classes=4, regions=1), IMAGE)
            _, rows = lay_out(graph, config, head="predict")
            ghn = GHN(config)
            shapes = jax.eval_shape(ghn.init, jax.random.key(0), featurise(graph, config, rows))
            params = drawn_like(shapes)["params"]
            made[core] = (ghn, jax.tree.map(lambda leaf: 0.4 * leaf, params))  # about as its own start
        return made[core]

    return get


class Half(nn.Module):
    """Parameters and activations in bfloat16."""

    @nn.compact
    def __call__(self, x):
        half = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        x = nn.relu(nn.GroupNorm(4, **half, name="norm")(nn.Conv(8, (3, 3), **half, name="conv")(x)))
        return nn.Dense(4, **half, name="head")(x.mean((1, 2)))


MODULES = {
    **{name: lambda name=name: (UNSEEN[name](4, 1), IMAGE) for name in ("densenet", "unet")},
    "resnet": lambda: (zoo.ResNet(), IMAGE),
    "vit": lambda: (build(Architecture("vit", (16,), 2, 4), classes=4, regions=1), IMAGE),
    "remat": lambda: (zoo.ResNet(block=nn.remat(zoo.ResBlock)), IMAGE),
    "3d": lambda: (zoo.Net3D(), jax.ShapeDtypeStruct((2, 8, 8, 8, 1), jnp.float32)),
    "bfloat16": lambda: (Half(), IMAGE),
}


@CORES
@pytest.mark.parametrize("name", MODULES)
def test_the_tree_is_that_of_module_init_and_runs(name, core, trained):
    """Checks 1 and 2: tree, shapes and types; every leaf predicted or listed; the module runs on it.

    On what the gated core predicts only one module is run: behind the bank nothing knows of the core.
    """
    ghn, params = trained(core)
    module, image = MODULES[name]()
    graph = trace_graph(module, image)
    init = hyper_init(params, module, image, ghn=ghn, head="predict", graph=graph)
    own = jax.eval_shape(
        lambda key: module.init(key, jnp.zeros(image.shape), **call_options(module, train=False)), jax.random.key(0)
    )
    made = jax.eval_shape(init, jax.random.key(0))
    assert jax.tree.structure(made) == jax.tree.structure(own)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), own)
    pieces, _ = lay_out(graph, ghn.config, head="predict")
    assert {p.path for p in pieces} | {path for path, _ in graph.fallback} == {path for path, _, _ in graph.shapes}
    if core == "graphormer" or name == "bfloat16":
        run = jax.jit(lambda key: module.apply(init(key), jnp.ones(image.shape), **call_options(module, train=False)))
        assert bool(jnp.isfinite(run(jax.random.key(0))).all())


def predicted(ghn, params, graph):
    """Tensors by path, compiled: op by op it would take many times as long."""
    return jax.jit(lambda params: predict_params(ghn, params, graph, head="predict")[0])(params)


def permuted(graph, seed):
    order = np.random.default_rng(seed).permutation(len(graph.nodes))
    return graph.relabelled([int(i) for i in order])


@CORES
def test_numbering_and_padding_change_nothing(core, trained):
    """Checks 6 and 7."""
    ghn, params = trained(core)
    graph = trace_graph(build(Architecture("residual", (8, 16), norm="group"), classes=4, regions=1), IMAGE)
    pieces, rows = lay_out(graph, ghn.config, head="predict")
    run = jax.jit(lambda features: ghn.apply({"params": params}, features))
    plain = run(featurise(graph, ghn.config, rows))
    shuffled = permuted(graph, 1)
    others, their_rows = lay_out(shuffled, ghn.config, head="predict")
    tensors = assemble(pieces, plain)
    other = assemble(others, run(featurise(shuffled, ghn.config, their_rows)))
    assert other.keys() == tensors.keys()
    for path, x in tensors.items():
        np.testing.assert_allclose(other[path], x, atol=2e-6, err_msg=str(path))
    most = {group: len(owners) + 2 for group, owners in rows.items()}
    wide = run(featurise(graph, ghn.config, rows, nodes=len(graph.nodes) + 7, most=most))
    for group, values in plain.items():
        np.testing.assert_allclose(wide[group][: len(values)], values, atol=2e-6)
    assert {piece.group for piece in pieces} == set(plain)


def test_names_wrappers_batch_and_resolution_change_nothing(trained):
    """Checks 8 and 9: only the graph counts."""
    ghn, params = trained()

    class Net(nn.Module):
        names: tuple[str, str]
        layer: type[nn.Module] = nn.Conv

        @nn.compact
        def __call__(self, x):
            x = nn.relu(self.layer(8, (3, 3), name=self.names[0])(x))
            return nn.Dense(4, name=self.names[1])(x.mean((1, 2)))

    def values(module, image):
        graph = trace_graph(module, image)
        tensors = predicted(ghn, params, graph)
        return [np.asarray(tensors[piece.path]) for piece in lay_out(graph, ghn.config, head="predict")[0]]

    first = values(Net(("a", "b")), IMAGE)
    for module, image in (
        (Net(("zeta", "alpha")), IMAGE),
        (Net(("a", "b"), nn.remat(nn.Conv)), IMAGE),
        (Net(("a", "b"), nn.jit(nn.Conv)), IMAGE),
        (Net(("a", "b")), jax.ShapeDtypeStruct((5, 24, 20, 3), jnp.float32)),
    ):
        chosen = values(module, image)
        assert len(chosen) == len(first)
        for one, other in zip(first, chosen, strict=True):
            np.testing.assert_array_equal(one, other)


def child_loss(module, params, stats, image, labels):
    logits, _ = module.apply({"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"])
    return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()


@CORES
def test_every_part_of_the_hypernetwork_gets_a_gradient(core, trained):
    """Checks 10 and 12: no leaf with a zero gradient, and one of them by finite differences through the child."""
    ghn, params = trained(core)
    module = build(PLAIN, classes=4, regions=1)
    graph = trace_graph(module, IMAGE)
    image = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    labels = jnp.arange(4)

    @jax.jit
    @jax.value_and_grad
    def valued(params):
        tensors = hyper_init(params, module, IMAGE, ghn=ghn, head="predict", graph=graph, noise=0)(jax.random.key(0))
        return child_loss(module, tensors["params"], tensors["batch_stats"], image, labels)

    grads = trees.named_leaves(valued(params)[1])
    silent = [path for path, grad in grads.items() if not float(jnp.abs(grad).max()) > 0]
    assert not silent
    at = ("decoder", "vector", "bias")
    step = 1e-2

    def moved(by):
        decoder = params["decoder"]
        bias = decoder["vector"]["bias"].at[0].add(by)
        value, _ = valued({**params, "decoder": {**decoder, "vector": {**decoder["vector"], "bias": bias}}})
        return value

    numeric = (float(moved(step)) - float(moved(-step))) / (2 * step)
    assert numeric == pytest.approx(float(grads["/".join(at)][0]), rel=0.05, abs=1e-4)


def test_heads_fallbacks_and_randomness(trained):
    """Nothing but a fresh head and noise depends on the key; a head may be named; fallbacks can be refused."""
    ghn, params = trained()
    module = build(PLAIN, classes=4, regions=1)

    def changing(**options):
        """Which parameters another key changes."""
        init = jax.jit(hyper_init(params, module, IMAGE, ghn=ghn, **options))
        one, two = (trees.named_leaves(init(jax.random.key(key))["params"]) for key in (0, 1))
        return {path for path in one if not np.array_equal(one[path], two[path])}

    own = jax.eval_shape(lambda key: module.init(key, jnp.zeros(IMAGE.shape), train=False), jax.random.key(0))
    assert not changing(head="predict", noise=0)
    assert changing(noise=0) == {"head/kernel"}
    assert changing() == {path for path, x in trees.named_leaves(own["params"]).items() if x.ndim > 1}
    assert changing(head_paths=[("hidden", "kernel")], noise=0) == {"hidden/kernel"}
    with pytest.raises(InputError, match=r"names hiden/kernel, .* found: head/kernel.* Parameters: .*hidden/kernel"):
        hyper_init(params, module, IMAGE, ghn=ghn, head_paths=[("hiden", "kernel")])

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(8, (3, 3), name="conv")(x)
            gain = self.param("gain", nn.initializers.constant(1e-6), (1, 1, 1, 8))
            return nn.Dense(4, name="head")((x * gain).mean((1, 2)))

    init = hyper_init(params, Scaled(), IMAGE, ghn=ghn)
    np.testing.assert_allclose(jax.jit(lambda key: init(key)["params"]["gain"])(jax.random.key(0)), 1e-6)
    with pytest.raises(InputError, match="gain"):
        hyper_init(params, Scaled(), IMAGE, ghn=ghn, fallback="error")
    for options in ({"fallback": "zeros"}, {"head": "none"}):
        with pytest.raises(InputError):
            hyper_init(params, module, IMAGE, ghn=ghn, **options)(jax.random.key(0))


def test_decoded_kernels_begin_with_unit_spread(trained):
    """Decision (j) 10: after rescaling, kernels of the reference graph have std 1 before their gain."""
    ghn, params = trained()
    graph = trace_graph(build(PLAIN, classes=4, regions=1), IMAGE)
    _, rows = lay_out(graph, ghn.config)
    features = featurise(graph, ghn.config, rows)
    bank = jax.jit(lambda params: ghn.apply({"params": unit_bank(ghn, params, graph)}, features))(params)
    numbers = jnp.concatenate([values.ravel() for group, values in bank.items() if "x" in group])
    assert float(jnp.sqrt(jnp.square(numbers).mean())) == pytest.approx(1, rel=1e-4)


def test_large_kernels_are_enlarged_and_small_ones_are_the_middle(trained):
    ghn, params = trained()

    class Decoding(nn.Module):
        @nn.compact
        def __call__(self, h, high, wide):
            return Decoder(ghn.config, name="decoder").kernels(h, high, wide)

    h = jax.random.normal(jax.random.key(2), (2, 16))

    @jax.jit
    def kernels(decoder):
        sizes = ((3, 3), (1, 1), (1, 3), (7, 7))
        return [Decoding().apply({"params": {"decoder": decoder}}, h, high, wide) for high, wide in sizes]

    whole, point, row, large = kernels(params["decoder"])
    np.testing.assert_array_equal(point[..., 0, 0], whole[..., 1, 1])
    np.testing.assert_array_equal(row[..., 0, :], whole[..., 1, :])
    assert large.shape == (2, 8, 8, 7, 7)
    np.testing.assert_allclose(large[..., 3, 3], whole[..., 1, 1], rtol=1e-5)


def test_vocabulary_takes_the_nearest_size():
    assert CHANNELS[nearest(5, CHANNELS) - 1] == 3 and CHANNELS[nearest(6, CHANNELS) - 1] == 8
    for size in (1, 3, 8, 64, 80, 4096, 8192):
        assert CHANNELS[nearest(size, CHANNELS) - 1] == size
    assert CHANNELS[nearest(70, CHANNELS) - 1] == 64 and CHANNELS[nearest(73, CHANNELS) - 1] == 80
    assert SIDES[nearest(2, SIDES) - 1] == 3 and SIDES[nearest(13, SIDES) - 1] == 14
    assert nearest(10**6, CHANNELS) == len(CHANNELS)


@pytest.mark.parametrize("change", [dict(width=18), dict(width=16, heads=3), dict(layers=0), dict(core="lstm")])
def test_impossible_sizes_are_refused(change):
    graph = trace_graph(build(PLAIN, classes=4, regions=1), IMAGE)
    _, rows = lay_out(graph, SMALL)
    with pytest.raises(InputError):
        jax.eval_shape(GHN(dataclasses.replace(SMALL, **change)).init, jax.random.key(0), featurise(graph, SMALL, rows))


def test_pools_are_drawn_by_seed_without_repetition():
    pool = draw_pool(3, 24)
    assert pool == draw_pool(3, 24) and pool != draw_pool(4, 24) and len(set(pool)) == 24
    assert [arch.family for arch in pool[:6]] == ["plain", "residual", "dense", "inverted", "vit", "unet"]
    # There are six different ViTs: once they are drawn the next family takes their turn.
    families = [arch.family for arch in dict.fromkeys(draw_pool(0, 48))]
    assert len(families) == 48 and families.count("vit") == 6 and families[39:42] == ["inverted", "unet", "unet"]
    assert draw_pool(0, 48)[:34] == draw_pool(0, 34)
    with pytest.raises(InputError, match="only 6 different"):
        draw_pool(0, 7, ("vit",))
    assert max(max(arch.widths) for arch in draw_pool(0, 30, widest=32)) <= 32
    with pytest.raises(InputError, match="plain"):
        draw_architecture(np.random.default_rng(0), "plane")


def test_a_pool_predicts_what_each_graph_alone_does(trained):
    """Padding to the largest graph and stacking change no child's parameters."""
    ghn, params = trained()
    archs = (PLAIN, Architecture("unet", (8, 16), norm="none", up="resize"))
    pool = make_pool(archs, (16, 16, 3), ghn.config, classes=4, regions=1)
    banks = jax.jit(lambda params: pool.banks(ghn, params))(params)
    for child, graph in enumerate(pool.graphs):
        alone, pieces = predicted(ghn, params, graph), pool.pieces[child]
        bank = {group: values[child] for group, values in banks.items()}
        together = assemble(pool.pieces[child], bank)
        for piece in pieces:
            np.testing.assert_allclose(together[piece.path], alone[piece.path], atol=2e-6)
        module = pool.modules[child]
        shapes = jax.eval_shape(
            lambda key, m=module: m.init(key, jnp.zeros(IMAGE.shape), train=False), jax.random.key(0)
        )
        tree = pool.tree_of(child, together)
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, shapes["params"])
        stats = pool.statistics(child)
        assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, shapes.get("batch_stats", {}))
        for path, leaf in trees.named_leaves(stats).items():
            assert leaf.dtype == jnp.float32 and set(leaf.tolist()) == {float(path.endswith("var"))}


def test_recalibration_fills_running_statistics():
    module = build(PLAIN, classes=4, regions=1)
    variables = drawn_like(
        jax.eval_shape(lambda key: module.init(key, jnp.zeros(IMAGE.shape), train=False), jax.random.key(0))
    )
    images = [jax.random.normal(jax.random.key(seed), (8, 16, 16, 3)) for seed in (1, 2)]
    found = recalibrate(module, variables, images)
    conv = variables["params"]["trunk"]["stem_conv"]["kernel"]
    means = [conv2d(image, conv).mean((0, 1, 2)) for image in images]
    np.testing.assert_allclose(found["batch_stats"]["trunk"]["stem_norm"]["mean"], sum(means) / 2, atol=1e-5)
    assert found["params"] is variables["params"]
    plain = {"params": {}}
    assert recalibrate(module, plain, images) == plain


def test_staged_gradients_of_a_pool_equal_monolithic_ones(trained):
    """Check 11: through banks, a switch and a scan, or through each child's whole program."""
    ghn, params = trained()
    archs = (PLAIN, Architecture("residual", (8,), norm="none", size=1))
    pool = make_pool(archs, (16, 16, 3), ghn.config, classes=4, regions=1)
    image, labels = jax.random.normal(jax.random.key(1), (4, 16, 16, 3)), jnp.arange(4)

    def branch(child):
        return lambda bank, carry, turn: (
            child_loss(
                pool.modules[child], pool.tree_of(child, assemble(pool.pieces[child], bank)), pool.statistics(child),
                image, labels,
            ),
            (carry, ()),
        )  # fmt: skip

    def staged(params):
        picks = jnp.array([1, 0])
        children = staged_scan([branch(0), branch(1)])
        return children(picks, pool.banks(ghn, params, picks), ())[1][0].mean()

    def monolithic(params):
        losses = []
        for child, graph in enumerate(pool.graphs):
            tensors, _ = predict_params(ghn, params, graph, head="predict")
            tree = pool.tree_of(child, tensors)
            losses.append(child_loss(pool.modules[child], tree, pool.statistics(child), image, labels))
        return sum(losses) / len(losses)

    (value, grads), (expected, expected_grads) = (
        jax.jit(jax.value_and_grad(loss))(params) for loss in (staged, monolithic)
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_grads))
    for path, leaf in trees.named_leaves(grads).items():
        np.testing.assert_allclose(leaf, trees.named_leaves(expected_grads)[path], rtol=1e-3, atol=1e-5 * largest)


def test_the_drop_in_is_found_at_the_top():
    assert ophjax.hyper_init is hyper_init and ophjax.trace_graph is trace_graph
    with pytest.raises(AttributeError, match="hyper"):
        ophjax.hyper  # noqa: B018
