"""The compression stages of dual regression: the search of channel numbers and the choice of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ophjax.keys import at
from ophjax.nets.superres import DRN, Restored, units
from ophjax.transforms import pruning, selection
from ophjax.transforms.bundling import bundle
from ophjax.types import Batch, Key, Logs, Stage, TrainState

if TYPE_CHECKING:
    from jax import Array

    from ophjax.methods.dualsr import Config

# The weight decay of the logits of the channel numbers and the greatest norm of the weights' gradient (spec, (e.1)).
NUMBERS_DECAY, CLIP = 1e-3, 5.0


class Parts(NamedTuple):
    """What the stages work on.

    Attributes:
      net: the primal network.
      forward: ``restored = forward(primal parameters, input, probe)``.
      losses: ``primal [], dual [] = losses(restored, dual parameters, images)``, means over the batch.
      cut: ``images = cut(key, batch)``: patches, coarse to fine.
    """

    net: DRN
    forward: Callable[..., Restored]
    losses: Callable[..., tuple[Array, Array]]
    cut: Callable[[Key, Batch], list[Array]]


class Compression:
    """The stages that a configuration asks for, and what they keep in the state."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.units = units(parts.net)
        self.plan = pruning.layout(self.units)
        self.among = pruning.choices(self.plan, config.ratio, repeats=config.repeats)
        self.uniform = pruning.uniform_counts(self.plan, config.ratio)
        self.searches = config.widths == "search"
        self.trained = ("primal", "dual") if config.dual_weight and not config.freeze_dual else ("primal",)
        adam = optax.adam(optax.cosine_decay_schedule(config.search_lr, config.search_steps, alpha=1e-3))
        self.weights_tx = bundle(optax.chain(optax.clip_by_global_norm(CLIP), adam))
        rate = optax.cosine_decay_schedule(config.numbers_lr, config.search_steps, alpha=1e-3)
        self.numbers_tx = optax.chain(optax.add_decayed_weights(NUMBERS_DECAY), optax.adam(rate))
        score = pruning.spatial_norms if config.selection_score == "outputs" else pruning.frobenius_norms
        self.greedy = selection.Plan(
            self.units, config.selection_at_once, config.selection_batches, config.refit, config.refit_lr, score
        )
        self.learns = config.selection in ("dual", "magnitude-refit")

    def begin(self, key: Key, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Makes the networks, optimiser states and further entries of a fresh state."""
        networks, slots = {}, {}
        if self.searches:
            networks["numbers"] = {"logits": 1e-3 * jax.random.normal(at(key, "numbers"), self.among.counts.shape)}
            slots["search"] = self.weights_tx.init({name: params[name] for name in self.trained})
            slots["numbers"] = self.numbers_tx.init(networks["numbers"])
        if self.learns:
            slots["selection"] = selection.memory(params["primal"], self.units)
        extra = {
            "mask": jnp.ones(len(self.plan.owner)),
            "counts": jnp.asarray(self.uniform, jnp.int32),
            "dense": copied({name: params[name] for name in ("primal", "dual") if name in params}),
            "unit": jnp.zeros((), jnp.int32),
            "tick": jnp.zeros((), jnp.int32),
        }
        return networks, slots, extra

    def stages(self) -> list[Stage]:
        """The search, where there is one, and the selection."""
        config, found = self.config, []
        if self.searches:
            nets = (*self.trained, "numbers")
            # Even and odd rows are of the split's two halves.
            found.append(
                Stage("search", config.search_steps, self.search, "search", nets, enter=self.remember, multiple=2)
            )
        if self.learns:
            most = self.among.counts.max(1) if self.searches else self.uniform
            steps = self.greedy.steps(most)
            found.append(Stage("selection", steps, self.select, "train", ("primal",), enter=self.switch_off))
        else:
            found.append(Stage("selection", 1, self.look, "train", (), enter=self.pick))
        return found

    # The search.

    def remember(self, key: Key, state: TrainState) -> TrainState:
        """Keeps the dense networks, which the selection starts from."""
        del key
        kept = {name: state.params[name] for name in state.extra["dense"]}
        return state.replace(extra=state.extra | {"dense": copied(kept)})

    def mixture(self, primal: Any, logits: Array) -> Array:
        """The mask of the relaxed channel numbers; ranks are by the consumers' L1 norms, without a gradient."""
        ranks = pruning.rank(pruning.by_channel(jax.lax.stop_gradient(primal), self.units), self.plan)
        return pruning.mixture(logits, self.among, ranks, self.plan)

    def search(self, key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        """One step of the alternation (spec, (e.1)): numbers by one half of the batch, a step of the weights ahead;
        weights by the other half. First order (spec, (j4)); both use one gradient of the weights."""
        images = self.parts.cut(at(key, "patches"), batch)
        fit, judge = ([image[half::2] for image in images] for half in (0, 1))

        def objective(trained: dict[str, Any], logits: Array, images: list[Array]) -> Array:
            params = state.params | trained
            primal = pruning.scale_inputs(params["primal"], self.units, self.mixture(params["primal"], logits))
            restored = self.parts.forward(primal, images[0], None)
            own, back = self.parts.losses(restored, params.get("dual"), images)
            return own + self.config.dual_weight * back

        trained = {name: state.params[name] for name in self.trained}
        logits = state.params["numbers"]["logits"]
        value, grads = jax.value_and_grad(objective)(trained, logits, fit)
        rate = self.config.search_lr
        ahead = trained | {"primal": jax.tree.map(lambda w, g: w - rate * g, trained["primal"], grads["primal"])}
        judged, slope = jax.value_and_grad(objective, argnums=1)(ahead, logits, judge)
        numbers = state.params["numbers"]
        change, opt_numbers = self.numbers_tx.update({"logits": slope}, state.opt["numbers"], numbers)
        numbers = optax.apply_updates(numbers, change)
        updates, opt = self.weights_tx.update(grads, state.opt["search"], trained)
        trained = optax.apply_updates(trained, updates)
        probs = pruning.choice_probs(numbers["logits"], self.among)
        logs = {
            "loss": value,
            "judged": judged,
            "grad_norm": optax.tree.norm(grads),
            "entropy": -jax.scipy.special.xlogy(probs, probs).sum(-1).mean(),
            "channels": pruning.choose(numbers["logits"], self.among).sum().astype(jnp.float32),
        }
        state = state.replace(
            params=state.params | trained | {"numbers": numbers},
            opt=state.opt | {"search": opt, "numbers": opt_numbers},
            extra=state.extra | {"mask": self.mixture(trained["primal"], numbers["logits"])},
        )
        return state, logs

    # The selection.

    def settle(self, key: Key, state: TrainState) -> TrainState:
        """Fixes the channel numbers and goes back to the dense networks."""
        if not self.searches:
            return self.remember(key, state)
        counts = pruning.choose(state.params["numbers"]["logits"], self.among)
        return state.replace(
            params=state.params | copied(state.extra["dense"]), extra=state.extra | {"counts": counts.astype(jnp.int32)}
        )

    def switch_off(self, key: Key, state: TrainState) -> TrainState:
        """Begins the greedy choice."""
        state = self.settle(key, state)
        return state.replace(extra=state.extra | selection.start(self.greedy)._asdict())

    def pick(self, key: Key, state: TrainState) -> TrainState:
        """Chooses channels at once, by norm or by lot."""
        state = self.settle(key, state)
        scores = pruning.by_channel(state.params["primal"], self.units)
        if self.config.selection == "random":
            scores = jax.random.uniform(at(key, "lot"), scores.shape)
        mask = pruning.keep_best(scores, state.extra["counts"], self.plan)
        return state.replace(extra=state.extra | {"mask": mask})

    def look(self, key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        """Computes the loss of what was picked and changes nothing, so that it is scored before it is tuned."""
        images = self.parts.cut(at(key, "patches"), batch)
        primal = pruning.scale_inputs(state.params["primal"], self.units, state.extra["mask"])
        own, back = self.parts.losses(self.parts.forward(primal, images[0], None), state.params.get("dual"), images)
        return state, {"loss": own + self.config.dual_weight * back}

    def select(self, key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        """One step of the greedy choice (spec, (e.2)); nothing where all units are done."""
        weights = self.config.selection_weights
        dense, images = state.extra["dense"], self.parts.cut(at(key, "patches"), batch)

        def loss(primal: Any, one_hot: Array) -> tuple[Array, Array]:
            restored = self.parts.forward(primal, images[0], one_hot)
            whole = self.parts.forward(dense["primal"], images[0], one_hot)
            rebuilt = sum(
                (jnp.square(a.astype(jnp.float32) - jax.lax.stop_gradient(b).astype(jnp.float32)).mean()
                 for a, b in zip(restored.features, whole.features, strict=True)),
                start=jnp.zeros(()),
            )  # fmt: skip
            own, back = self.parts.losses(restored, state.params.get("dual"), images)
            return weights[0] * rebuilt + weights[1] * own + weights[2] * back, rebuilt

        given = None
        if self.config.selection == "magnitude-refit":
            given = pruning.by_channel(dense["primal"], self.units)

        def run(state: TrainState) -> tuple[TrainState, Logs]:
            place = selection.Place(*(state.extra[name] for name in selection.Place._fields))
            primal, place, memory, value, rebuilt = selection.advance(
                self.greedy, loss, state.params["primal"], place, state.opt["selection"], state.extra["counts"], given
            )
            state = state.replace(
                params=state.params | {"primal": primal},
                opt=state.opt | {"selection": memory},
                extra=state.extra | place._asdict(),
            )
            return state, {"loss": value, "reconstruction": rebuilt}

        def idle(state: TrainState) -> tuple[TrainState, Logs]:
            return state, {"loss": jnp.zeros(()), "reconstruction": jnp.zeros(())}

        state, logs = jax.lax.cond(state.extra["unit"] < len(self.units), run, idle, state)
        return state, logs | {"unit": state.extra["unit"].astype(jnp.float32)}


def copied(tree: Any) -> Any:
    """Copies arrays: a step takes the memory of the state that it is given, so that no array may be there twice."""
    return jax.tree.map(jnp.copy, tree)
