"""Measure a method's steps and its input pipeline: python experiments/bench.py --method seatrans

Prints, for each stage, the compile time, the step time with a batch that lies on the device, its floating-point
operations and which share they reach of the speed of a large matrix product on this machine, the images per second the
pipeline delivers alone (first epoch, and from the cache), their ratio, and the peak memory of the process.
With --cold compiling is timed too, first without and then with the cache of compiled programs.
With --seeds the steps of so many seeds in one program are timed in turns with those of one.
With --memory BATCH the memory that --dry-run tells is compared with what a process takes, at that batch size.
With --peer torch the steps are timed in turns with those of the same networks written in plain PyTorch, then each in
a process of its own.
With --variants the last stage's step and the prediction are timed in turns with those of other variants; with
--convolutions the library's convolutions are timed in turns with plain lax; with --dfgt DiFF's search for many images
in one program is timed against Python loops over the images; with --hyper the hypernetwork's own costs are timed; with
--compact RATIO the paper's super-resolution net is timed in turns with one that lacks this share of its channels.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import presets
from costs import memory, narrow, seeds
from costs.hypernetwork import hypernetwork
from costs.measuring import in_turns, timed
from costs.search import search_rates
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import pipeline
from ophjax.errors import InputError, unknown
from ophjax.train import host
from peers import timing


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--method", default="seatrans", help=f"one of {', '.join(methods.METHODS)}")
    parser.add_argument("--preset", default="demo", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each stage")
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="variants to time beside the method")
    parser.add_argument("--convolutions", action="store_true", help="time convolutions instead of a method")
    parser.add_argument("--dfgt", type=int, metavar="IMAGES", help="time DiFF's search for so many images instead")
    parser.add_argument("--size", type=int, default=256, help="with --dfgt: side of the images")
    parser.add_argument("--hyper", action="store_true", help="time a hypernetwork: tracing, predicting, training")
    parser.add_argument("--compact", type=float, metavar="RATIO", help="time a compact super-resolution net instead")
    parser.add_argument("--cold", action="store_true", help="time compiling, without and with the cache of programs")
    parser.add_argument("--devices", type=int, metavar="N", help="so many virtual CPU devices share the batch")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="type of the activations")
    parser.add_argument("--memory", type=int, metavar="BATCH", help="hold the dry run's memory against a process's")
    parser.add_argument("--seeds", type=int, metavar="N", help="time so many seeds in one program against runs of one")
    parser.add_argument("--peer", choices=("torch",), help="time the same networks in PyTorch beside ours")
    parser.add_argument("--modes", nargs="+", choices=timing.MODES, default=timing.MODES, help="PyTorch's, with --peer")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args(argv)


def pipeline_rate(source: Any, batch_size: int, threads: int, batches: int) -> float:
    """Images per second of the pipeline with nothing behind it."""
    stream = pipeline.train_batches(source, batch_size=batch_size, seed=0, threads=threads)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    taken = time.perf_counter() - start
    stream.close()
    return batches * batch_size / taken


class Bench:
    """A method or a variant of it, started, whose stages can be stepped one at a time."""

    def __init__(
        self, options: argparse.Namespace, variant: str = "", changes: dict[str, Any] | None = None, seeds: int = 1
    ) -> None:
        import jax

        from ophjax.train import loop, mesh
        from ophjax.train.seeds import side_by_side

        module = methods.load(options.method)
        if variant and variant not in module.VARIANTS:
            raise unknown("variant", variant, tuple(module.VARIANTS))
        config, data_config, self.train = presets.preset(options.preset, options.method)
        self.data = datasets.load(module.DATA).make(data_config)
        changes = (changes or {}) | (module.VARIANTS[variant][0] if variant else {})
        if options.precision:
            if not hasattr(config, "dtype"):
                raise InputError(f"--method {options.method} has no choice of precision. Leave --precision out.")
            changes["dtype"] = options.precision
        self.config = dataclasses.replace(methods.fit_to(config, self.data), **changes)
        self.train = dataclasses.replace(self.train, seeds=seeds)
        self.method = side_by_side(module.make(self.config), self.train.all_seeds)
        self.mesh = mesh.make_mesh(model=self.train.model_parallel)
        self.spec = loop.batch_spec(self.data, self.train, self.mesh)
        self.shardings = mesh.state_shardings(jax.eval_shape(self.method.init, jax.random.key(0), self.spec), self.mesh)
        init = loop.compile_init(self.method, self.spec, self.shardings)
        start = time.perf_counter()
        self.state = jax.block_until_ready(init(jax.random.key(self.train.seed)))
        self.init_s = time.perf_counter() - start
        self.predict = jax.jit(self.method.predict)

    def enter(self, stage: Any) -> float:
        """Goes to a stage: places a batch, compiles and runs its first step; returns the seconds of that step."""
        import jax

        from ophjax.train import loop, mesh
        from ophjax.train.flops import count_flops
        from ophjax.train.seeds import Abreast

        stream = pipeline.train_batches(self.data.splits[stage.data], batch_size=self.train.batch_size, seed=0)
        seeds = self.train.seeds
        self.batch = mesh.place(next(stream if seeds == 1 else Abreast([stream] * seeds)), self.mesh)
        stream.close()
        start = time.perf_counter()
        traced = loop.compile_step(stage, self.mesh, self.shardings).trace(jax.random.key(0), self.state, self.batch)
        self.step = traced.lower().compile()
        compiled = time.perf_counter() - start
        # XLA counts the body of a loop once; its further rounds are added from the traced program.
        rounds = count_flops(traced.jaxpr) - count_flops(traced.jaxpr, loops=False)
        self.flops = int((self.step.cost_analysis() or {}).get("flops", 0)) * self.mesh.size + rounds
        return compiled + self.run()

    def compile(self, stage: Any) -> tuple[float, float]:
        """Seconds of tracing and compiling a stage's step with an empty cache of programs, and of doing so again."""
        import jax
        from jax.experimental.compilation_cache import compilation_cache

        from ophjax.train import loop

        kept, taken = jax.config.jax_compilation_cache_dir, []
        with tempfile.TemporaryDirectory() as folder:
            jax.config.update("jax_compilation_cache_dir", folder)
            for _ in range(2):
                jax.clear_caches()
                compilation_cache.reset_cache()
                start = time.perf_counter()
                loop.compile_step(stage, self.mesh, self.shardings).lower(
                    jax.random.key(0), self.state, self.batch
                ).compile()
                taken.append(time.perf_counter() - start)
        jax.config.update("jax_compilation_cache_dir", kept)
        compilation_cache.reset_cache()
        return taken[0], taken[1]

    def run(self) -> float:
        """Seconds of one step."""
        import jax

        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.step(jax.random.key(0), self.state, self.batch))
        return time.perf_counter() - start

    def infer(self) -> float:
        """Seconds of one prediction of the batch that ``enter`` placed."""
        import jax

        start = time.perf_counter()
        jax.block_until_ready(self.predict(jax.random.key(0), self.state, self.batch))
        return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict:
    """Times every stage of the method, and the last one against the variants asked for."""
    import jax

    bench = Bench(options)
    peak = product_speed(options.precision or "float32") / 1e9
    train, found = bench.train, {"init_s": bench.init_s, "matrix_product_gflops": peak, "stages": []}
    for stage in bench.method.stages:
        source = bench.data.splits[stage.data]
        epoch = -(-len(source) // train.batch_size)
        # Only the first stage meets examples that were never read: later ones find them in memory.
        drawn = None if found["stages"] else pipeline_rate(source, train.batch_size, train.threads, epoch)
        cached = pipeline_rate(source, train.batch_size, train.threads, 4 * epoch)
        compiled = bench.enter(stage)
        taken = statistics.median(bench.run() for _ in range(options.steps))
        cold, warm = bench.compile(stage) if options.cold else (None, None)
        found["stages"].append(
            {
                "name": stage.name,
                "first_step_s": compiled,
                "compile_cold_s": cold,
                "compile_cached_s": warm,
                "step_ms": 1000 * taken,
                "step_images_per_s": train.batch_size / taken,
                "gflop_per_step": bench.flops / 1e9,
                "share_of_matrix_product": bench.flops / taken / 1e9 / peak,
                "pipeline_first_epoch_images_per_s": drawn,
                "pipeline_images_per_s": cached,
                "pipeline_over_step": cached / (train.batch_size / taken),
            }
        )
    found["step_over_variant"], found["prediction_over_variant"] = {}, {}
    for variant in options.variants:
        other = Bench(options, variant)
        other.enter(other.method.stages[-1])
        found["step_over_variant"][variant] = times_as_long(bench.run, other.run, options.steps)
        bench.infer(), other.infer()  # compiles
        found["prediction_over_variant"][variant] = times_as_long(bench.infer, other.infer, options.steps)
    found["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    about = {"method": options.method, "preset": options.preset, "platform": jax.devices()[0].platform}
    return about | {"devices": jax.device_count()} | found


def product_speed(dtype: str, size: int = 2048, times: int = 5) -> float:
    """Floating-point operations a second of the product of two large matrices, at its fastest, on all devices together
    (virtual ones of a CPU share its cores)."""
    import jax
    import jax.numpy as jnp

    product, x = jax.jit(jnp.matmul), jax.random.normal(jax.random.key(0), (size, size), dtype)
    devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        taken.append(time.perf_counter() - start)
    return devices * 2 * size**3 / min(taken[1:])


def times_as_long(ours: Callable[[], float], theirs: Callable[[], float], times: int) -> float:
    """The median time of one over that of the other, in turns so that both see the same machine."""
    taken = in_turns({"ours": ours, "theirs": theirs}, times)
    return statistics.median(taken["ours"]) / statistics.median(taken["theirs"])


def convolutions(times: int) -> dict[str, float]:
    """Times forward pass and both gradients of each convolution, ours over plain lax."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn
    from jax import lax

    from ophjax.nets import conv

    def plain(x: Any, kernel: Any, stride: int = 1, groups: int = 1) -> Any:
        sides = ((kernel.shape[0] - 1) // 2,) * 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), (sides, sides), dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    def pooled(size: int, stride: int, pad: int) -> tuple[Callable, Callable]:
        sides = ((pad, pad), (pad, pad))
        return (
            lambda x, kernel: conv.max_pool(x, size=size, stride=stride, padding=pad) * kernel,
            lambda x, kernel: nn.max_pool(x, (size, size), (stride, stride), sides) * kernel,
        )

    def strided(stride: int) -> tuple[Callable, Callable]:
        return (lambda x, k: conv.conv2d(x, k, stride=stride)), (lambda x, k: plain(x, k, stride))

    # name: ours and lax's, shape of the images, shape of the kernel
    cases = {
        "3x3, 64 px, 16 channels": (strided(1), (16, 64, 64, 16), (3, 3, 16, 16)),
        "3x3 stride 2, 32 px, 32 channels": (strided(2), (16, 32, 32, 32), (3, 3, 32, 64)),
        "7x7 stride 2, 64 px, 3 to 64 channels": (strided(2), (8, 64, 64, 3), (7, 7, 3, 64)),
        "3x3, 32 px, 64 channels": (strided(1), (16, 32, 32, 64), (3, 3, 64, 64)),
        "3x3, 64 px, 128 channels": (strided(1), (4, 64, 64, 128), (3, 3, 128, 128)),
        "3x3, 32 px, 256 channels": (strided(1), (4, 32, 32, 256), (3, 3, 256, 256)),
        "3x3, 4 px, 128 channels": (strided(1), (16, 4, 4, 128), (3, 3, 128, 128)),
        "3x3, 2 px, 128 channels": (strided(1), (16, 2, 2, 128), (3, 3, 128, 128)),
        "3x3, 32 px, 64 to 3 channels": (strided(1), (16, 32, 32, 64), (3, 3, 64, 3)),
        "1x1 stride 2, 32 px, 64 channels": (strided(2), (16, 32, 32, 64), (1, 1, 64, 128)),
        "1x1, 64 px, 256 to 64 channels": (strided(1), (4, 64, 64, 256), (1, 1, 256, 64)),
        "depthwise 3x3, 32 px, 64 channels": (
            (conv.depthwise2d, lambda x, k: plain(x, k, groups=x.shape[-1])), (16, 32, 32, 64), (3, 3, 1, 64),
        ),
        "transposed 2x2, 16 px, 64 channels": (
            (
                conv.upsample2x2,
                lambda x, k: lax.conv_transpose(x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
            ), (16, 16, 16, 64), (2, 2, 64, 32),
        ),
        "max-pool 3 stride 2, 32 px, 64 channels": (pooled(3, 2, 1), (16, 32, 32, 64), ()),
        "max-pool 2 stride 2, 32 px, 64 channels": (pooled(2, 2, 0), (16, 32, 32, 64), ()),
    }  # fmt: skip
    found = {}
    for name, (pair, image, kernel) in cases.items():
        inputs = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((image, kernel))]

        def gradients(function: Callable) -> Callable:
            return jax.value_and_grad(lambda x, k: jnp.square(function(x, k)).sum(), argnums=(0, 1))

        found[name] = times_as_long(*(timed(gradients(function), *inputs) for function in pair), times)
        print(f"  {name:42} {found[name]:.2f}")
    return found


def main() -> int:
    """Prints the measurements."""
    options = arguments(sys.argv[1:])
    found: dict
    if options.devices:
        import jax

        jax.config.update("jax_num_cpu_devices", options.devices)
    host.prepare_compiler()
    host.keep_memory()
    if options.dfgt:
        found = search_rates(
            options.dfgt, options.size, options.preset, min(options.steps, options.dfgt), torch=bool(options.peer)
        )
        print(f"DF-GT for {options.dfgt} images of {options.size} x {options.size}, 7 raters, preset {options.preset}:")
        for name, seconds in found.items():
            least = found["together_cpu" if name.endswith("_cpu") else "together"]
            print(f"  {name:22} {seconds:8.2f} s, {seconds / least:.2f} times as long as together")
    elif options.hyper:
        found = hypernetwork(options.preset, options.steps)
        for name, value in found.items():
            print(f"  {name:26} {value:.3f}")
    elif options.convolutions:
        print("Forward pass and both gradients, ours over lax:")
        found = convolutions(options.steps)
    else:
        try:
            if options.peer:
                timing.describe(found := timing.against_torch(options, Bench))
            elif options.compact is not None:
                narrow.describe(found := narrow.against_dense(options.compact, options.steps))
            elif options.memory:
                memory.describe(found := memory.against_estimate(options))
            elif options.seeds:
                seeds.describe(found := seeds.against_separate(options, Bench))
            else:
                describe(found := measure(options))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(found))
    return 0


def describe(found: dict) -> None:
    """Prints what was measured of a method."""
    print(
        f"{found['method']}, preset {found['preset']}, on {found['devices']} x {found['platform']}: init "
        f"{found['init_s']:.1f} s; a large matrix product reaches {found['matrix_product_gflops']:.0f} GFLOP/s"
    )
    for stage in found["stages"]:
        drawn = stage["pipeline_first_epoch_images_per_s"]
        first = "" if drawn is None else f"{drawn:.0f} images/s in the first epoch, "
        print(
            f"  {stage['name']:12} first step {stage['first_step_s']:.1f} s, then {stage['step_ms']:.1f} ms "
            f"({stage['step_images_per_s']:.0f} images/s); pipeline {first}"
            f"{stage['pipeline_images_per_s']:.0f} once all is in memory: "
            f"{stage['pipeline_over_step']:.1f} times what the step takes; {stage['gflop_per_step']:.2f} GFLOP a step, "
            f"{stage['share_of_matrix_product']:.0%} of the matrix product's speed"
        )
        if stage["compile_cold_s"]:
            print(
                f"  {'':12} traced and compiled in {stage['compile_cold_s']:.1f} s, from the cache of programs in "
                f"{stage['compile_cached_s']:.1f} s"
            )
    for variant, ratio in found["step_over_variant"].items():
        predicts = found["prediction_over_variant"][variant]
        print(f"  its last stage's step takes {ratio:.2f} times that of {variant}, its prediction {predicts:.2f} times")
    print(f"  peak memory {found['peak_memory_mib']:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
