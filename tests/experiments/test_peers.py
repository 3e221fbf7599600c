"""The peers in PyTorch compute what ours compute: as many parameters, the same outputs, losses and gradients."""

import copy
import dataclasses
import importlib.util
import mmap
import sys
from functools import cache

import jax
import numpy as np
import optax
import pytest

import bench
import peers
import presets
from costs import measuring
from ophjax import data as datasets
from ophjax import methods, trees
from ophjax.errors import InputError
from ophjax.nets.critic import PatchEncoder
from ophjax.nets.efficientnet import EfficientUNet
from ophjax.nets.expertness import ExpG
from ophjax.nets.resnet import ResNet
from ophjax.nets.synthesizer import DomainSynthesizer
from ophjax.nets.unet import UNet
from ophjax.nets.ushape import UShape
from ophjax.train import host
from ophjax.transforms import expertise
from ophjax.transforms.searching import search
from peers import alone, timing


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")


def leave_the_process(monkeypatch):
    """The bench changes no settings of the tests' own process."""
    monkeypatch.setattr(host, "prepare_compiler", lambda: None)
    monkeypatch.setattr(host, "keep_memory", lambda: None)


@cache
def example(preset, method):
    """A configuration fitted to its data, and the sources of its examples."""
    config, data_config, _ = presets.preset(preset, method)
    data = datasets.load(methods.load(method).DATA).make(data_config)
    return methods.fit_to(config, data), data.splits


def batch_of(sources, stream, rows=6):
    """The first examples of a stream, labels and domains in turn."""
    drawn = [sources[stream][i] for i in range(rows)]
    batch = {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}
    batch |= {name: np.arange(rows, dtype=np.int32) % 2 for name in ("label", "domain") if name in batch}
    if "mask" in batch:
        batch["mask_weight"] = np.ones(rows, np.float32)
    return batch | {"index": np.arange(rows, dtype=np.int32), "weight": np.ones(rows, np.float32)}


def counts(torch, preset, method, changes):
    """Parameters of each network, ours and the peer's; no number is computed on either side."""
    written = peers.load(method)
    config, sources = example(preset, method)
    config = dataclasses.replace(config, **(written.WITHOUT | changes))
    batch = batch_of(sources, "train", 2)
    spec = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
    state = jax.eval_shape(methods.load(method).make(config).init, jax.random.key(0), spec)
    with torch.device("meta"):
        peer = written.make(config, {name: value.shape for name, value in spec.items()})
    theirs = {name: sum(leaf.numel() for leaf in net.parameters()) for name, net in peer.nets.items()}
    return {name: trees.count(tree) for name, tree in state.params.items()}, theirs


@pytest.mark.parametrize("method", peers.PEERS)
def test_parameter_counts_are_ours(torch, method):
    ours, theirs = counts(torch, "demo", method, {})
    assert theirs == ours


@pytest.mark.slow
@pytest.mark.parametrize("method", peers.PEERS)
def test_parameter_counts_are_ours_at_the_papers_scale(torch, method):
    ours, theirs = counts(torch, "paper", method, {})
    assert theirs == ours


BASELINES = [
    ("seatrans", dict(baseline="image-only")),
    ("seatrans", dict(baseline="mask-concat")),
    ("seatrans", dict(baseline="same-scale")),
    ("seatrans", dict(baseline="single-attention")),
    ("fccl", dict(baseline="erm", trunk="resnet", depth=10)),
    ("fccl", dict(projection=8)),
    ("m2dan", dict(baseline="source-only")),
    ("m2dan", dict(single_scale=True, align="fused")),
    ("goals", dict(segmenter="unet", hidden=0)),
    ("gamma", dict(task="grading", modality="fundus")),
    ("gamma", dict(task="segmentation", segmenter="ushape")),
    ("ads", dict(synthesizers="shared", mi_weight=0.0)),
    ("dualsr", dict(dual_weight=0.0, freeze_dual=False, ratio=0.0)),
]


@pytest.mark.parametrize(("method", "changes"), BASELINES)
def test_baselines_have_as_many_parameters(torch, method, changes):
    ours, theirs = counts(torch, "smoke", method, changes)
    assert theirs == ours


def draw(params, stats):
    """Parameters of the usual sizes, none of which begins as nothing, and running statistics, for shapes of both."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        name, value = str(path[-1].key), rng.normal(size=shape.shape).astype(np.float32)
        if name == "scale":
            return 1 + 0.1 * value
        return 0.1 * value if len(shape.shape) < 2 else value / np.prod(shape.shape[:-1]).astype(np.float32) ** 0.5

    drawn = jax.tree_util.tree_map_with_path(leaf, params)
    return drawn, jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), stats)


def outputs(torch, net, peer, size, *, train=True):
    """What both nets make of the same images with the same weights, the channels last."""
    from peers.weights import copy_weights

    image = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    made = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), image)
    drawn, stats = draw(made["params"], made.get("batch_stats", {}))
    copy_weights(peer, drawn, stats)
    run = jax.jit(lambda v, x: net.apply(v, x, train=train, mutable=["batch_stats"])[0])
    ours = np.asarray(run({"params": drawn, "batch_stats": stats}, image))
    theirs = peer.train(train)(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    return ours, np.moveaxis(theirs.detach().numpy(), 1, -1)


def assert_equal(ours, theirs):
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * max(1.0, abs(ours).max()))


@pytest.mark.parametrize("train", [True, False])
def test_the_resnet_gives_our_outputs(torch, train):
    from peers import blocks

    assert_equal(*outputs(torch, ResNet(5, 10, 4), blocks.ResNet(5, 10, 4), (35, 42), train=train))


def test_the_unet_gives_our_outputs(torch):
    """Neither side of the images is a multiple of four."""
    from peers import blocks

    assert_equal(*outputs(torch, UNet(3, 4, 2), blocks.UNet(3, 4, 2), (17, 22)))


@pytest.mark.slow
@pytest.mark.parametrize("net", ["ushape", "bottlenecks", "efficientnet"])
def test_other_nets_give_our_outputs(torch, net):
    from peers import blocks
    from peers.efficientnet import EfficientUNet as TheirEfficientUNet

    pairs = {
        "ushape": (UShape(3, 4), blocks.UShape(3, 4, "batch")),
        "bottlenecks": (ResNet(5, 50, 4, "small", "group"), blocks.ResNet(5, 50, 4, "small", "group")),
        "efficientnet": (EfficientUNet(2), TheirEfficientUNet(2, "batch")),
    }
    assert_equal(*outputs(torch, *pairs[net], (35, 42), train=net != "efficientnet"))


# Settings under which a step draws nothing by chance.
CERTAIN = {
    "seatrans": dict(drop_path=0.0),
    "fccl": {},
    "m2dan": {},
    "diff": dict(drop_path=0.0),
    "selfcal": dict(drop_path=0.0, shuffle_weight=0.0, train_rounds=1),
    "goals": {},
    "gamma": dict(task="segmentation"),
    "dualsr": dict(ratio=0.0),
}


def test_the_adversarys_nets_give_our_outputs(torch):
    """ADS's step draws by chance throughout: the synthesizer without noise, and the critic's features at every tap."""
    from peers import ads
    from peers.weights import copy_weights

    config = dataclasses.replace(example("smoke", "ads")[0], kernel_sizes=(3, 1), style_noise=0)
    assert set(peers.PEERS) - set(CERTAIN) == {"ads"}
    image = np.random.default_rng(1).normal(size=(2, 16, 12, 3)).astype(np.float32)
    seen = torch.from_numpy(image.transpose(0, 3, 1, 2))
    pairs = (
        (DomainSynthesizer(config.hidden, (3, 1), 0), ads.Synthesizer(config), (jax.random.key(0),)),
        (PatchEncoder(ads.TAPS[:6], 4), ads.PatchEncoder(ads.TAPS[:6], 4), ()),
    )
    for net, peer, more in pairs:
        params, _ = draw(jax.eval_shape(net.init, jax.random.key(0), image, *more)["params"], {})
        copy_weights(peer, params)
        ours, theirs = net.apply({"params": params}, image, *more), peer(seen)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert_equal(np.asarray(one), np.moveaxis(other.detach().numpy(), 1, -1))


@pytest.mark.parametrize(
    "method", [name if name == "fccl" else pytest.param(name, marks=pytest.mark.slow) for name in CERTAIN]
)
def test_steps_have_our_losses_and_gradients(torch, method, monkeypatch):
    """Every stage that is written, its loss and the norm of its gradient, from the same weights on the same batch."""
    from peers.weights import copy_weights

    written, (config, sources) = peers.load(method), example("smoke", method)
    config = dataclasses.replace(config, **(written.WITHOUT | CERTAIN[method]))
    if method == "dualsr":  # Ours cuts at random, unless there is only one place.
        config = dataclasses.replace(config, patch=sources["train"][0]["target"].shape[0])
    if method == "m2dan":  # Ours begins without.
        monkeypatch.setattr(written, "STRENGTH", 0.0)
    made = methods.load(method).make(config)
    spec = jax.eval_shape(made.init, jax.random.key(0), batch_of(sources, "train"))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
    params, stats = draw(spec.params, spec.extra.get("batch_stats", {}))
    state = state.replace(params=params, extra=state.extra | ({"batch_stats": stats} if stats else {}))
    peer = written.make(config, {name: value.shape for name, value in batch_of(sources, "train").items()})
    for name, net in peer.nets.items():
        copy_weights(net, params[name], stats.get(name))
    # What is compared is the gradient before it is cut.
    whole = {name: tuple(move._replace(clip=0.0) for move in moves) for name, moves in peer.stages.items()}
    theirs = timing.Theirs(peer._replace(stages=whole), "eager")
    compared = 0
    for stage in made.stages:
        if stage.name not in peer.stages:
            continue
        batch = batch_of(sources, stage.data)
        _, logs = jax.jit(stage.step)(jax.random.key(0), state, batch)
        before = {name: copy.deepcopy(net.state_dict()) for name, net in peer.nets.items()}
        theirs.enter(stage.name, batch)
        found = sum(float(leaf.grad.square().sum()) for leaf in theirs.moves[0][3] if leaf.grad is not None) ** 0.5
        assert theirs.loss == pytest.approx(float(logs["loss"]), rel=1e-4)
        assert found == pytest.approx(float(logs["grad_norm"]), rel=1e-3)
        for name, net in peer.nets.items():
            net.load_state_dict(before[name])
        compared += 1
    assert compared == len(peer.stages)


def test_the_search_for_expertness_goes_our_way(torch):
    """The logit before each of six steps, from the same coordinate network and diagnosis net."""
    from peers import diff
    from peers.weights import copy_weights

    rng, (net, theirs) = (
        np.random.default_rng(2),
        (ResNet(1, 10, 8, "small"), diff.ResNet(1, 10, 8, "small", channels=4)),
    )
    image, encoded = rng.uniform(size=(24, 20, 3)), rng.integers(0, 3, (24, 20, 7)) / 2
    image, encoded = (x.astype(np.float32) for x in (image, encoded))
    made = jax.eval_shape(lambda: net.init(jax.random.key(0), np.zeros((1, 24, 20, 4), np.float32), train=False))
    params, stats = draw(made["params"], made["batch_stats"])
    stats = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf - (path[-1].key == "mean"), stats)  # none is dead
    own, _ = draw(jax.eval_shape(lambda: ExpG(7, 6).init(jax.random.key(0), 24, 20))["params"], {})

    def objective(own):
        fused = expertise.fuse(expertise.expertness(ExpG(7, 6).apply({"params": own}, 24, 20), np.ones(7)), masks)
        seen = jax.numpy.concatenate([image, fused], -1)
        return -net.apply({"params": params, "batch_stats": stats}, seen[None], train=False)[0, 0]

    masks = encoded.transpose(2, 0, 1)[..., None]
    values = jax.jit(lambda own: search(objective, optax.adam(0.05), own, steps=6)[1])(own)
    copy_weights(theirs, params, stats)
    copy_weights(maps := diff.ExpG(7, 6), own)
    seen = (torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in (image, encoded))
    logits = diff.search(theirs, maps, *seen, steps=6, lr=0.05)
    np.testing.assert_allclose(logits, -np.asarray(values), rtol=1e-3, atol=1e-4)
    assert logits[-1] > logits[0]


def test_the_search_in_one_program_is_timed_against_a_loop_in_pytorch(torch, monkeypatch, capsys):
    leave_the_process(monkeypatch)
    argv = ["--dfgt", "2", "--size", "16", "--steps", "1", "--preset", "smoke", "--peer", "torch"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *argv])
    assert bench.main() == 0
    said = capsys.readouterr().out
    assert "  together " in said and "  loop_in_torch " in said and "  loop_in_torch_cpu " in said


@pytest.mark.parametrize("mode", ["eager", "channels-last"])
def test_bench_compares_and_describes(torch, mode, monkeypatch, capsys):
    leave_the_process(monkeypatch)
    monkeypatch.setattr(alone, "of_each", lambda settings, names: {name: {"error": "not asked for"} for name in names})
    argv = ["--method", "fccl", "--preset", "smoke", "--peer", "torch", "--steps", "2", "--modes", mode]
    monkeypatch.setattr(sys, "argv", ["bench.py", *argv])
    assert bench.main() == 0
    said = capsys.readouterr().out
    assert "threads for each" in said and f"    {mode} " in said and "ours/torch" in said
    assert "not measured: not asked for" in said and "fastest of these" not in said


def test_bench_describes_each_alone(torch, monkeypatch, capsys):
    """Ours takes 6 ms and PyTorch 4: 1.5 times as long; memory is told above what the imports take."""
    leave_the_process(monkeypatch)

    def measured(settings, names):
        assert names == ["ours", "eager"] and settings[4] == 3
        memory = dict(imports_mib=100.0, steps_mib=150.0, peak_mib=170.0)
        return {
            name: memory | {"step_ms": dict.fromkeys(settings[3], 6.0 if name == "ours" else 4.0)} for name in names
        }

    monkeypatch.setattr(alone, "of_each", measured)
    argv = ["--method", "fccl", "--preset", "smoke", "--peer", "torch", "--steps", "2", "--modes", "eager"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *argv])
    assert bench.main() == 0
    said = capsys.readouterr().out
    assert "6.0 ms; 50 MiB at most while stepping, above the 100" in said
    assert "ours over the fastest of these, geometric mean over stages: 1.50" in said


def test_the_fastest_of_each_stage_is_what_ours_is_held_against():
    taken = {
        "ours": {"a": 6.0, "b": 2.0},
        "eager": {"a": 3.0, "b": 8.0},
        "compiled": {},
        "channels-last": {"a": 4.0, "b": 4.0},
    }
    assert timing.over_best(taken) == pytest.approx(1.0)  # 6 / 3 and 2 / 4
    assert timing.over_best({"ours": {}, "eager": {}}) is None and timing.over_best({"ours": {"a": 1.0}}) is None


def settings_alone():
    """What a process of its own is given: FCCL's first stage and three steps."""
    config, sources = example("smoke", "fccl")
    stage = methods.load("fccl").make(config).stages[0]
    batch = batch_of(sources, stage.data)
    shapes = {name: value.shape for name, value in batch.items()}
    return ("fccl", dataclasses.asdict(config), shapes, {stage.name: batch}, 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_steps_in_a_process_of_their_own():
    """Ours needs no PyTorch; a process that fails says why."""
    settings = settings_alone()
    held = alone.of_each(settings, ["ours"])["ours"]
    assert held["step_ms"].keys() == settings[3].keys() and min(held["step_ms"].values()) > 0
    assert held["steps_mib"] > held["imports_mib"] > 0
    assert "Unknown method" in alone.of_each(("nothing", *settings[1:]), ["ours"])["ours"]["error"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_steps_of_pytorch_in_a_process_of_their_own(torch):
    settings = settings_alone()
    held = alone.of_each(settings, ["eager"])["eager"]
    assert held["step_ms"].keys() == settings[3].keys() and min(held["step_ms"].values()) > 0
    assert held["steps_mib"] > held["imports_mib"] > 0


def test_ratios_are_of_pairs_with_their_spread():
    assert measuring.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
    order = []
    taken = measuring.in_turns({name: lambda name=name: order.append(name) or 1.0 for name in "ab"}, 3)
    assert order == list("abbaab") and taken == {"a": [1.0] * 3, "b": [1.0] * 3}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_read_and_set_back():
    measuring.forget()
    before = measuring.resident("VmHWM")
    with mmap.mmap(-1, 2**27) as block:  # 128 MiB, given back when it is closed
        block.write(bytes(2**27))
    assert measuring.resident("VmHWM") > before + 100
    most = measuring.resident("VmHWM")
    measuring.forget()
    assert measuring.resident("VmHWM") < most - 100


def test_a_method_without_a_peer_is_told_which_have_one(monkeypatch, capsys):
    leave_the_process(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--method", "hyperinit", "--peer", "torch"])
    assert bench.main() == 2
    assert "seatrans, fccl, m2dan" in capsys.readouterr().err


def test_without_pytorch_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install torch"):
        peers.load("fccl")
