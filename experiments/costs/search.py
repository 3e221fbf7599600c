"""What DiFF's search for expertness costs: the measurements of ``bench.py --dfgt``."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import peers
import presets
from peers import timing


def search_rates(images: int, size: int, preset: str, times: int, *, torch: bool = False) -> dict[str, float]:
    """Times DF-GT for images with 7 raters: all in one vmapped program, and by Python loops over the images.

    The loops run what is compiled for one image: its whole search, or a single step of it, as the released code calls
    it; with ``torch`` there is also a loop in eager PyTorch. They go over ``times`` images and are scaled up to all.

    Returns:
      Seconds for all images: ``together``, ``loop_of_searches``, ``loop_of_steps``, ``loop_in_torch``, without the
      compiling, and with ``_cpu`` the host's CPU time, which is the fairer number on a busy machine (not of PyTorch,
      whose threads spin when they wait).

    Raises:
      InputError: PyTorch is not installed.
    """
    written = peers.load("diff") if torch else None
    import jax
    import jax.numpy as jnp
    import optax

    from ophjax.nets.expertness import make_maps
    from ophjax.nets.resnet import ResNet
    from ophjax.transforms.expertise import expertness, fuse
    from ophjax.transforms.searching import search

    config, _, _ = presets.preset(preset, "diff")
    net = ResNet(1, config.diagnosis_depth, config.diagnosis_width, "small")
    maps, tx = make_maps("expg", 7, hidden=config.hidden), optax.adam(config.search_lr)
    keys = jax.random.split(jax.random.key(0), images)
    image = jax.random.uniform(jax.random.key(1), (images, size, size, 3))
    encoded = jax.random.randint(jax.random.key(2), (images, 7, size, size, 1), 0, 3) / 2
    theta = jax.jit(lambda seen: net.init(jax.random.key(3), seen, train=False))(jnp.zeros((1, size, size, 4)))
    start = jax.jit(jax.vmap(lambda key: maps.init(key, size, size)["params"]))(keys)

    def objective(own: Any, image: Any, encoded: Any) -> Any:
        raw: Any = maps.apply({"params": own}, size, size)
        seen = jnp.concatenate([image, fuse(expertness(raw, jnp.ones(7)), encoded)], -1)
        logits: Any = net.apply(theta, seen[None], train=False)
        return -logits[0, 0]

    def whole(own: Any, image: Any, encoded: Any) -> Any:
        return search(lambda own: objective(own, image, encoded), tx, own, steps=config.search_steps)[0]

    def once(own: Any, state: Any, image: Any, encoded: Any) -> Any:
        updates, state = tx.update(jax.grad(objective)(own, image, encoded), state, own)
        return optax.apply_updates(own, updates), state

    all_at_once, alone, step = jax.jit(jax.vmap(whole)), jax.jit(whole), jax.jit(once)
    chosen = [jax.tree.map(lambda leaf, i=i: leaf[i], (start, image, encoded)) for i in range(min(times, images))]

    def loop_of_steps() -> None:
        for own, picture, masks in chosen:
            state = tx.init(own)
            for _ in range(config.search_steps):
                own, state = step(own, state, picture, masks)
            jax.block_until_ready(own)

    def loop_of_searches() -> None:
        for one in chosen:
            jax.block_until_ready(alone(*one))

    def in_torch(written: Any) -> Callable[[], None]:
        from torch import from_numpy, set_num_threads

        set_num_threads(timing.cores())
        theirs = written.ResNet(1, config.diagnosis_depth, config.diagnosis_width, "small", channels=4)

        def loop_in_torch() -> None:
            for _, picture, masks in chosen:
                seen, given = (from_numpy(np.moveaxis(np.asarray(x), -1, -3).copy()) for x in (picture, masks))
                own = written.ExpG(7, config.hidden)
                written.search(theirs, own, seen, given[:, 0], steps=config.search_steps, lr=config.search_lr)

        return loop_in_torch

    share = images / len(chosen)
    runs: list[tuple[str, Callable[[], Any], float]] = [
        ("together", lambda: jax.block_until_ready(all_at_once(start, image, encoded)), 1.0),
        ("loop_of_searches", loop_of_searches, share),
        ("loop_of_steps", loop_of_steps, share),
    ]
    found = {}
    for name, run, scale in [*runs, ("loop_in_torch", in_torch(written), share)] if written else runs:
        run()
        begun = time.perf_counter(), time.process_time()
        run()
        found[name] = scale * (time.perf_counter() - begun[0])
        found[f"{name}_cpu"] = scale * (time.process_time() - begun[1])
    return found
