"""What a hypernetwork costs: the measurements of ``bench.py --hyper``."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import presets
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import pipeline


def hypernetwork(preset: str, times: int) -> dict[str, float]:
    """Times what a hypernetwork costs: reading a ResNet-50, predicting its parameters at the paper's scale, and a
    training step over four children against those children's own steps (one AdamW step of each, same images).

    Returns:
      Seconds, the CPU time of both kinds of steps, and ``meta_over_children``, the ratio of the latter.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from ophjax.data.augment import centred, unit
    from ophjax.losses.classification import softmax_cross_entropy
    from ophjax.losses.segmentation import binary_cross_entropy, soft_dice_loss
    from ophjax.methods import hyperinit
    from ophjax.nets.children import draw_pool
    from ophjax.nets.features import GHNConfig, featurise, lay_out
    from ophjax.nets.graph import trace_graph
    from ophjax.nets.hyperinit import make_pool, predict_params
    from ophjax.nets.hypernet import GHN
    from ophjax.nets.resnet import ResNet

    found, begun = {}, time.perf_counter()
    graph = trace_graph(ResNet(1000, depth=50), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    found["trace_resnet50_s"], ghn = time.perf_counter() - begun, GHN(GHNConfig())
    features = featurise(graph, ghn.config, lay_out(graph, ghn.config, head="predict")[1])
    params = jax.jit(ghn.init)(jax.random.key(0), features)["params"]
    predict = jax.jit(lambda params: predict_params(ghn, params, graph, head="predict")[0])
    for name in ("predict_resnet50_first_s", "predict_resnet50_s"):
        begun = time.perf_counter()
        jax.block_until_ready(predict(params))
        found[name] = time.perf_counter() - begun

    config, data_config, train = presets.preset(preset, "hyperinit")
    data = datasets.load("shapes").make(data_config)
    config = dataclasses.replace(methods.fit_to(config, data), pool=4, meta_batch=4)
    method = hyperinit.make(config)
    batch = {name: jnp.asarray(value) for name, value in next(pipeline.train_batches(
        data.splits["train"], batch_size=train.batch_size, seed=0)).items()}  # fmt: skip
    state = jax.jit(method.init)(jax.random.key(0), batch)
    meta = jax.jit(method.stages[0].step)
    pool = make_pool(
        draw_pool(config.pool_seed, 4, hyperinit.served(config), norms=config.norms, widest=config.widest),
        batch["image"].shape[1:], hyperinit.ghn_config(config), classes=len(config.classes),
        regions=len(config.regions),
    )  # fmt: skip
    tx = optax.adamw(1e-3)

    def own(child: int) -> Callable[[], Any]:
        module, dense = pool.modules[child], pool.archs[child].dense
        variables = jax.jit(lambda key: module.init(key, jnp.zeros((1, *pool.image)), train=False))(jax.random.key(0))
        opt = tx.init(variables["params"])

        def loss(params: Any) -> Any:
            image = centred(unit(batch["image"]))
            logits, stats = module.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            if not dense:
                return softmax_cross_entropy(logits, batch["label"]).mean(), stats
            each = binary_cross_entropy(logits, batch["mask"]) + soft_dice_loss(jax.nn.sigmoid(logits), batch["mask"])
            return each.mean(), stats

        @jax.jit
        def step(params: Any, opt: Any) -> Any:
            grads, stats = jax.grad(loss, has_aux=True)(params)
            updates, opt = tx.update(grads, opt, params)
            return optax.apply_updates(params, updates), opt, stats

        return lambda: jax.block_until_ready(step(variables["params"], opt))

    steps = [own(child) for child in range(4)]

    def cpu(run: Callable[[], Any]) -> float:
        begun = time.process_time()
        run()
        return time.process_time() - begun

    def all_children() -> None:
        for step in steps:
            step()

    def meta_step() -> None:
        jax.block_until_ready(meta(jax.random.key(1), state, batch))

    all_children(), meta_step()
    pairs = [(cpu(meta_step), cpu(all_children)) for _ in range(times)]
    found["meta_step_cpu_s"], found["children_cpu_s"] = (statistics.median(side) for side in zip(*pairs, strict=True))
    found["meta_over_children"] = found["meta_step_cpu_s"] / found["children_cpu_s"]
    return found
