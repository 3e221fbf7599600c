"""ADS: two learnt synthesizers invent domains that a segmenter must agree on, and keep what the image shows.

Xu et al., "Adversarial Consistency for Single Domain Generalization in Medical Image Segmentation", MICCAI 2022. One
labelled source is seen. Each step makes two views of a batch by small networks with noise; the segmenter learns to
segment both and to say the same of both, then the synthesizers learn to make it disagree, held back by a lower bound
on the mutual information of a view and its image, which a critic on patches gives. Method and numbers are those of
the authors' released program as far as they could be read there; decisions of ours are named in BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ophjax.data.augment import flip, unit
from ophjax.data.scans import exclusive, warp, z_score
from ophjax.errors import InputError, check_options, unknown
from ophjax.keys import at
from ophjax.losses.adversarial import patch_nce, symmetric_kl
from ophjax.losses.segmentation import soft_dice_loss
from ophjax.metrics import ranking, streaming
from ophjax.metrics.domain_scores import by_domain
from ophjax.nets.critic import TAPS, PatchCritic
from ophjax.nets.efficientnet import EfficientUNet
from ophjax.nets.synthesizer import DomainSynthesizer, random_convolution, random_network
from ophjax.nets.unet import UNet
from ophjax.transforms.bundling import bundle, scale_networks
from ophjax.transforms.mixing import cut_out, mix_randomly
from ophjax.transforms.stepping import begin, descend, in_turn
from ophjax.types import Batch, Key, Logs, Method, Outputs, Pairs, Stage, TrainState

PAPER = {
    "title": "Adversarial Consistency for Single Domain Generalization in Medical Image Segmentation",
    "authors": "Xu, Xie, Reynolds, Ragoza, Gong, Batmanghelich",
    "venue": "MICCAI 2022",
    "arxiv": "2206.13737",
}

# The data set where none is named.
DATA = "organs"

# Changes to Config: a net for two CPU cores, and one for tests that learns nothing.
DEMO: dict[str, Any] = dict(
    segmenter="unet", width=8, depth=3, kernel_sizes=(1, 3, 1, 1), mi_weight=1.0, critic_width=4, projection=32,
    patches=64, gamma=(1.0, 1.0), noise=0.0, zoom=0.0, rotate=0.0, shear=0.0, elastic=0.0,
    lr=5e-3, synthesizer_rate=0.4, schedule="cosine", steps=400,
)  # fmt: skip
SMOKE: dict[str, Any] = dict(
    segmenter="unet", width=4, depth=1, kernel_sizes=(1, 3), critic_width=4, projection=8, patches=16,
    taps=("pixels", "down1"), zoom=0.0, rotate=0.0, shear=0.0, elastic=0.0, lr=1e-3, schedule="constant", steps=4,
)  # fmt: skip

# Changes to the loop's configuration.
TRAIN: dict[str, dict[str, Any]] = {"paper": dict(batch_size=24), "demo": dict(batch_size=4)}

# What a comparison runs beside the method itself: changes to Config, and the networks taken over from its run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "erm": (dict(baseline="erm"), ()),
    "cutout": (dict(baseline="cutout"), ()),
    "randconv": (dict(baseline="randconv"), ()),
    "gin": (dict(baseline="gin"), ()),
    "no-mi": (dict(mi_weight=0.0), ()),
    "frozen": (dict(synthesizers="frozen"), ()),
    "shared": (dict(synthesizers="shared"), ()),
    "no-noise": (dict(style_noise=0), ()),
    "free-weights": (dict(weights="free"), ()),
    "no-consistency": (dict(consistency_weight=0.0), ()),
}

# The scores of a comparison's table (patterns over names), the first of which is compared seed by seed.
SCORES = ("dice", "dice_*")


@dataclasses.dataclass(frozen=True)
class Config:
    """ADS at the paper's scale (abdominal CT to MRI)."""

    baseline: Literal["none", "erm", "cutout", "randconv", "gin"] = "none"
    """none: ADS. erm: the images as they are. cutout: with a hole. randconv, gin: two views by random networks in place
    of the synthesizers, with the same losses."""

    segmenter: Literal["efficientnet-b2", "unet"] = "efficientnet-b2"
    """efficientnet-b2: U-Net on that encoder. unet: a plain U-Net of the width and depth below."""
    width: int = 32
    """Channels of the plain U-Net at full resolution."""
    depth: int = 4
    """Halvings of the plain U-Net."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation of the segmenter; batch: statistics of each view alone."""

    synthesizers: Literal["learned", "shared", "frozen"] = "learned"
    """learned: two. shared: one for both views. frozen: two, left as they were drawn (no adversary)."""
    hidden: int = 2
    """Channels between a synthesizer's convolutions."""
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 3)
    """Sides of its kernels, one for each convolution; small images need smaller ones, such as 1 3 1 1."""
    style_noise: int = 2
    """Length of the noise vectors that set scale and shift between them; 0: neither noise nor norm."""
    weights: Literal["standardised", "free"] = "standardised"
    """standardised: weights are used at mean 0 and deviation 1, so that the adversary cannot win by their size."""

    consistency_weight: float = 10.0
    """Weight of the disagreement of both views in the segmenter's loss. As PyTorch's KLDivLoss counts it, over pixels
    and classes: divided by the number of classes before it meets the sum over classes."""
    adversary_weight: float = 100.0
    """Weight of the same disagreement in the synthesizers' loss, where it is to grow; counted likewise."""
    adversary_segmentation: float = 0.0
    """Weight of the segmentation loss that the synthesizers raise as well."""
    mi_weight: float = 10.0
    """Weight of the critic's loss for the synthesizers; 0: no critic."""
    mi_image: Literal["raw", "mixed"] = "raw"
    """What the critic compares with the image: the synthesizers' output, or the view mixed from it."""
    mi_views: Literal["both", "first"] = "both"
    """Views that the critic sees; first: as the released program has it, which leaves the second free."""
    taps: tuple[str, ...] = ("pixels", "stem", "down1", "down2", "res1")
    """Layers of the critic's encoder that are compared: pixels, stem, down1, down2, res1 to res6."""
    critic_width: int = 32
    """Channels of the critic's first layer."""
    projection: int = 256
    """Length of the vectors that are compared."""
    patches: int = 256
    """Places of the image that are compared at each layer."""
    temperature: float = 0.07
    """Cosines are divided by this before the softmax."""

    hole: float = 0.3
    """cutout: side of the square, as a share of the image's."""
    random_sizes: tuple[int, ...] = (1, 3, 5, 7)
    """randconv: sides of the kernels to draw from; odd numbers."""

    gamma: tuple[float, float] = (0.5, 4.5)
    """Images in [0, 1] are raised to a power drawn between these."""
    noise: float = 0.1
    """Standard deviation of the noise that half of the normalised images get."""
    zoom: float = 0.2
    """Greatest relative change of size."""
    rotate: float = 0.1
    """Greatest rotation in radians."""
    shear: float = 0.5
    """Greatest shear."""
    elastic: float = 4.0
    """Greatest elastic displacement in pixels, for half of the images."""
    flip: bool = False
    """Horizontal flips; only where left and right do not matter."""

    lr: float = 4e-4
    """Adam's learning rate, for the segmenter and for the synthesizers with the critic."""
    synthesizer_rate: float = 1.0
    """The synthesizers' learning rate as a share of lr; the critic keeps lr."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates of the first and the second moment."""
    schedule: Literal["root", "cosine", "constant"] = "root"
    """Learning rate over training. root: lr (1 - sqrt(done / steps))."""
    steps: int = 42_000
    """Batches (2000 epochs of 21)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the segmenter's and the critic's activations; parameters, losses, statistics and synthesizers stay
    float32."""

    regions: tuple[str, ...] = ("liver", "right-kidney", "left-kidney", "spleen")
    """Names of the mask's channels; filled in from the data set. A pixel in several belongs to the last of them."""
    domains: tuple[str, ...] = ()
    """Names of the domains, the source first; filled in from the data set. Used to score, never to train."""


def check(config: Config) -> None:
    """Raises InputError for settings that no net can be built or trained from."""
    ones = ("width", "depth", "critic_width", "projection", "steps")
    zeros = (
        "style_noise", "consistency_weight", "adversary_weight", "adversary_segmentation", "mi_weight", "noise",
        "rotate", "shear", "elastic",
    )  # fmt: skip
    least = dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0)
    rules = {name: (getattr(config, name) >= bound, f"at least {bound}") for name, bound in least.items()}
    for name in ("kernel_sizes", "random_sizes"):
        sizes = getattr(config, name)
        rules[name] = (bool(sizes) and all(size >= 1 and size % 2 for size in sizes), "one or more odd numbers")
    rules |= {
        "hidden": (config.hidden >= 2, "at least 2: a single weight has no deviation"),
        "taps": (len(set(config.taps)) == len(config.taps) > 0, f"one or more out of {', '.join(TAPS)}, none twice"),
        "patches": (config.patches >= 2, "at least 2"),
        "temperature": (config.temperature > 0, "above 0"),
        "hole": (0 < config.hole <= 1, "above 0 and at most 1"),
        "gamma": (0 < config.gamma[0] <= config.gamma[1], "two numbers above 0, the smaller first"),
        "zoom": (0 <= config.zoom < 1, "at least 0 and below 1"),
        "lr": (config.lr > 0, "above 0"),
        "synthesizer_rate": (config.synthesizer_rate > 0, "above 0"),
        "betas": (all(0 <= beta < 1 for beta in config.betas), "two numbers of at least 0 and below 1"),
    }
    check_options(config, rules)
    for tap in config.taps:
        if tap not in TAPS:
            raise unknown("tap of the critic (--method.taps)", tap, TAPS)
    if not config.regions:
        raise InputError(
            "ADS learns to segment, but the data set has no masks. Give one that has regions, such as --data organs, "
            "or a folder with masks."
        )


def make(config: Config) -> Method:
    """Builds ADS, or the baseline that the configuration names.

    Batches hold ``image`` uint8 [b, h, w, 3], ``mask`` uint8 [b, h, w, c], ``weight`` and ``mask_weight`` float32 [b]
    (0: padding, no mask), ``index`` int32 [b] and, where they are scored, ``domain`` int32 [b]. The output is
    ``mask_probs`` [b, h, w, c], the probability of each region beside the others and the background.

    Raises:
      InputError: the settings contradict each other, or the data set has no masks.
    """
    check(config)
    classes, dtype = 1 + len(config.regions), jnp.dtype(config.dtype)
    segmenter: Any = (
        UNet(classes, config.width, config.depth, config.norm, dtype)
        if config.segmenter == "unet"
        else EfficientUNet(classes, config.norm, dtype)
    )
    standardised = config.weights == "standardised"
    synthesizer = DomainSynthesizer(config.hidden, config.kernel_sizes, config.style_noise, standardised)
    critic = PatchCritic(config.taps, config.critic_width, config.projection, config.patches, dtype)
    synthesizes = config.baseline == "none"
    plays = synthesizes and config.synthesizers != "frozen"
    informed = plays and config.mi_weight > 0
    copies = ("both",) if config.synthesizers == "shared" else ("first", "second")
    opponents = ("synthesizers", "critic") if informed else ("synthesizers",)
    trained = ("segmenter", *opponents) if plays else ("segmenter",)

    rates: dict[str, Any] = {
        "constant": config.lr,
        "cosine": optax.cosine_decay_schedule(config.lr, config.steps),
        "root": lambda done: config.lr * (1 - jnp.sqrt(jnp.minimum(done / config.steps, 1.0))),
    }
    tx = bundle(optax.adam(rates[config.schedule], *config.betas))
    opponent_tx = optax.chain(tx, scale_networks(synthesizers=config.synthesizer_rate))

    def scene(key: Key, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The batch as both players see it: normalised images, and the class of each pixel as one-hot."""
        batch = flip(at(key, "flip"), batch) if config.flip else batch
        image, mask, index = unit(batch["image"]), batch["mask"], batch["index"]
        rows = (len(image), 1, 1, 1)
        if config.gamma != (1.0, 1.0):
            low, high = config.gamma
            image = image ** jax.random.uniform(at(key, "gamma"), rows, minval=low, maxval=high)
        if config.zoom or config.rotate or config.shear or config.elastic:
            image, mask = warp(
                at(key, "warp"), image, mask, index,
                zoom=config.zoom, rotate=config.rotate, shear=config.shear, elastic=config.elastic,
            )  # fmt: skip
        image = z_score(image)
        if config.noise:
            noisy = jax.random.bernoulli(at(key, "noisy"), shape=rows)
            image = image + config.noise * noisy * jax.random.normal(at(key, "noise"), image.shape)
        return image, exclusive(mask)

    def views(params: Any, key: Key, image: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """What the synthesizers (or random networks) make of the images, and the views mixed from it."""
        if config.baseline == "erm":
            return [], [image]
        if config.baseline == "cutout":
            return [], [cut_out(at(key, "hole"), image, side=config.hole)]
        raw: list[Any] = []
        for number in (0, 1):
            drawn = at(key, "style", number)
            if config.baseline == "gin":
                raw.append(random_network(drawn, image, hidden=config.hidden))
            elif config.baseline == "randconv":
                raw.append(random_convolution(drawn, image, sizes=config.random_sizes))
            else:
                own = params["synthesizers"][copies[number % len(copies)]]
                raw.append(synthesizer.apply({"params": own}, image, drawn))
        return raw, [mix_randomly(at(key, "share", number), image, one) for number, one in enumerate(raw)]

    def segment(params: Any, stats: Any, seen: list[jax.Array]) -> tuple[jax.Array, Any]:
        """Logits [v, b, h, w, k] of the views, each normalised by itself, and the statistics after them."""
        stats, logits = stats["segmenter"], []
        for image in seen:
            variables = {"params": params["segmenter"], "batch_stats": stats}
            found, new = segmenter.apply(variables, image, train=True, mutable=["batch_stats"])
            stats = new.get("batch_stats", {})
            logits.append(found)
        return jnp.stack(logits), stats

    def segmentation_loss(logits: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
        """Soft Dice of all classes and cross-entropy, added over the views; images without a mask do not count."""
        target = jnp.broadcast_to(target, logits.shape)
        each = optax.softmax_cross_entropy(logits, target).mean((2, 3))
        flat = (-1, *logits.shape[2:])
        dice = soft_dice_loss(jax.nn.softmax(logits).reshape(flat), target.reshape(flat), smooth=1e-5)
        each = each + dice.mean(-1).reshape(each.shape)
        return (each.sum(0) * weight).sum() / jnp.maximum(weight.sum(), 1.0)

    def learn_masks(drawn: Key, key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        del key
        image, target = scene(at(drawn, "scene"), batch)
        _, seen = views(params, at(drawn, "views"), image)
        logits, stats = segment(params, extra["batch_stats"], seen)
        loss = segmentation_loss(logits, target[None], batch["mask_weight"])
        logs = {"segmentation": loss}
        if len(seen) == 2:
            logs["disagreement"] = symmetric_kl(*logits).mean()
            loss = loss + config.consistency_weight / classes * logs["disagreement"]
        return loss, ({"batch_stats": {"segmenter": stats}}, logs)

    def information(params: Any, key: Key, image: jax.Array, others: list[jax.Array]) -> jax.Array:
        """The critic's loss: how badly places of the others are told apart by those of the image."""
        places = at(key, "places")
        known: Any = critic.apply({"params": jax.lax.stop_gradient(params["critic"])}, image, places)
        # Beside one another within each example, so that examples stay on their devices.
        joined = jnp.stack(others, 1).reshape(-1, *image.shape[1:])
        asked: Any = critic.apply({"params": params["critic"]}, joined, places)
        paid = [
            patch_nce(queries, jnp.repeat(known[tap], len(others), 0), temperature=config.temperature).mean()
            for tap, queries in asked.items()
        ]
        return jnp.stack(paid).mean()

    def synthesize(drawn: Key, key: Key, params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Logs]]:
        image, target = scene(at(drawn, "scene"), batch)
        raw, seen = views(params, at(drawn, "views"), image)
        # By the statistics of these views, which the segmenter does not keep.
        logits, _ = segment(params, extra["batch_stats"], seen)
        logs = {"disagreement": symmetric_kl(*logits).mean()}
        loss = -config.adversary_weight / classes * logs["disagreement"]
        if config.adversary_segmentation:
            raised = segmentation_loss(logits, target[None], batch["mask_weight"])
            loss = loss - config.adversary_segmentation * raised
        if informed:
            compared = raw if config.mi_image == "raw" else seen
            logs["nce"] = information(params, key, image, compared if config.mi_views == "both" else compared[:1])
            loss = loss + config.mi_weight * logs["nce"]
        return loss, ({}, logs)

    def learn(key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        # Both players meet the same views: same noise, same shares.
        drawn = at(key, "drawn")
        learner = functools.partial(learn_masks, drawn)
        steps = [("segmenter", descend(learner, tx, trains=("segmenter",), slot="segmenter"))]
        if plays:
            opponent = functools.partial(synthesize, drawn)
            steps.append(("synthesizers", descend(opponent, opponent_tx, trains=opponents, slot="synthesizers")))
        state, logs = in_turn(*steps)(key, state, batch)
        return state, {"loss": logs["segmenter/loss"]} | logs

    def init(key: Key, batch: Batch) -> TrainState:
        image = z_score(unit(batch["image"]))
        made = segmenter.init(at(key, "segmenter"), image, train=False)
        params: dict[str, Any] = {"segmenter": made["params"]}
        if synthesizes:
            params["synthesizers"] = {
                copy: synthesizer.init(at(key, "synthesizer", copy), image, at(key, "style"))["params"]
                for copy in copies
            }
        if informed:
            params["critic"] = critic.init(at(key, "critic"), image, at(key, "places"))["params"]
        opt = {"segmenter": begin(tx, params, ("segmenter",))}
        if plays:
            opt["synthesizers"] = begin(opponent_tx, params, opponents)
        stats = {"segmenter": made.get("batch_stats", {})}
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt=opt, extra={"batch_stats": stats})

    def predict(key: Key, state: TrainState, batch: Batch) -> Outputs:
        del key
        variables = {"params": state.params["segmenter"], "batch_stats": state.extra["batch_stats"]["segmenter"]}
        logits = segmenter.apply(variables, z_score(unit(batch["image"])), train=False)
        return {"mask_probs": jax.nn.softmax(logits)[..., 1:]}

    def metrics(outputs: Outputs, batch: Batch) -> Pairs:
        probs = outputs["mask_probs"]
        best = jnp.concatenate([1 - probs.sum(-1, keepdims=True), probs], -1).argmax(-1)
        chosen = jax.nn.one_hot(best, classes)[..., 1:]
        weight = batch["weight"] * batch["mask_weight"]
        found = streaming.region_metrics(chosen, exclusive(batch["mask"])[..., 1:], config.regions, weight=weight)
        return {name: pair for name, pair in found.items() if name.startswith("dice_")}

    def domain_scores(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        overlaps = {f"dice_{region}": rows[f"dice_{region}"] for region in config.regions}
        overlaps = {"dice": np.mean(list(overlaps.values()), 0)} | overlaps
        return ranking.mean_scores(overlaps, clusters=ranking.patients(rows))

    def scores(gathered: Mapping[str, np.ndarray]) -> dict[str, float]:
        return by_domain(gathered, config.domains, domain_scores)

    watch = f"dice_{config.domains[0]}" if len(config.domains) > 1 else "dice"
    return Method(init, (Stage("game" if plays else "training", config.steps, learn, "masks", trained),), predict,
                  metrics, scores, watch, exclusive=True)  # fmt: skip
