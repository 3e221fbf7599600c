"""Measure a method's steps and its input pipeline: python experiments/bench.py --method seatrans

Prints, for each stage, the compile time, the step time with a batch that lies on the device, the images per second
the pipeline delivers alone (first epoch, and from the cache), their ratio, and the peak memory of the process.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import presets
from ophjax import data as datasets
from ophjax import methods
from ophjax.data import pipeline
from ophjax.errors import InputError
from ophjax.train import host


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", default="seatrans", help=f"one of {', '.join(methods.METHODS)}")
    parser.add_argument("--preset", default="demo", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each stage")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return parser.parse_args(argv)


def pipeline_rate(source, batch_size: int, threads: int, batches: int) -> float:
    """Images per second of the pipeline with nothing behind it."""
    stream = pipeline.train_batches(source, batch_size=batch_size, seed=0, threads=threads)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    taken = time.perf_counter() - start
    stream.close()
    return batches * batch_size / taken


def measure(options: argparse.Namespace) -> dict:
    """Times every stage of the method on phantoms."""
    import jax

    from ophjax.train import loop, mesh

    config, data_config, train = presets.preset(options.preset, options.method)
    data = datasets.load(methods.load(options.method).DATA).make(data_config)
    config = methods.fit_to(config, data)
    method = methods.load(options.method).make(config)
    where = mesh.make_mesh(model=train.model_parallel)
    spec = loop.batch_spec(data, train, where)
    shardings = mesh.state_shardings(jax.eval_shape(method.init, jax.random.key(0), spec), where)
    start = time.perf_counter()
    state = jax.block_until_ready(loop.compile_init(method, spec, shardings)(jax.random.key(train.seed)))
    found = {"init_s": time.perf_counter() - start, "stages": []}
    for stage in method.stages:
        source = data.splits[stage.data]
        epoch = -(-len(source) // train.batch_size)
        drawn = pipeline_rate(source, train.batch_size, train.threads, epoch)
        cached = pipeline_rate(source, train.batch_size, train.threads, 4 * epoch)
        stream = pipeline.train_batches(source, batch_size=train.batch_size, seed=0, threads=train.threads)
        batch = mesh.place(next(stream), where)
        stream.close()
        step = loop.compile_step(stage, where, shardings)
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(jax.random.key(0), state, batch))
        compiled = time.perf_counter() - start
        times = []
        for _ in range(options.steps):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(jax.random.key(0), state, batch))
            times.append(time.perf_counter() - start)
        rate = train.batch_size / statistics.median(times)
        found["stages"].append(
            {
                "name": stage.name,
                "first_step_s": compiled,
                "step_ms": 1000 * statistics.median(times),
                "step_images_per_s": rate,
                "pipeline_first_epoch_images_per_s": drawn,
                "pipeline_images_per_s": cached,
                "pipeline_over_step": cached / rate,
            }
        )
    found["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"method": options.method, "preset": options.preset, "platform": jax.devices()[0].platform} | found


def main() -> int:
    """Prints the measurements."""
    options = arguments(sys.argv[1:])
    host.cache_programs()
    host.keep_memory()
    try:
        found = measure(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{found['method']}, preset {found['preset']}, on {found['platform']}: init {found['init_s']:.1f} s")
    for stage in found["stages"]:
        print(
            f"  {stage['name']:12} first step {stage['first_step_s']:.1f} s, then {stage['step_ms']:.1f} ms "
            f"({stage['step_images_per_s']:.0f} images/s); pipeline {stage['pipeline_first_epoch_images_per_s']:.0f} "
            f"images/s in the first epoch, {stage['pipeline_images_per_s']:.0f} after it: "
            f"{stage['pipeline_over_step']:.1f} times what the step takes"
        )
    print(f"  peak memory {found['peak_memory_mib']:.0f} MiB")
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
