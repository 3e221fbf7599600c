"""Show the graph of a network as the hyper-initializer reads it: python experiments/graph.py MODULE --out graph.png

MODULE is a Flax module by its import path, as in ophjax.nets.resnet:ResNet, made with --options and called with random
inputs of the shapes in --input. With --method all networks of a method are shown. Prints what nodes there are, how many
parameters a hypernetwork predicts, and the others with the reason.
"""

import argparse
import importlib
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

from ophjax.errors import InputError, as_command, unknown


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("module", nargs="?", help="package.module:Class")
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE", help="fields of the class, JSON")
    parser.add_argument(
        "--input", nargs="+", default=["1,64,64,3"], metavar="SHAPE", help="one for each input (default 1,64,64,3)"
    )
    parser.add_argument("--method", help="show the networks of this method instead")
    parser.add_argument("--preset", default="demo", help="of the method (default demo)")
    parser.add_argument("--out", type=Path, help="picture to write; of a method, one for each network")
    parser.add_argument("--columns", type=int, default=16, help="operations in a row of the picture (default 16)")
    return parser.parse_args(argv)


def make_module(name: str, options: list[str]) -> Any:
    """Makes a module from its import path and options.

    Raises:
      InputError: there is no such class, or it has no such fields.
    """
    from flax import linen as nn

    place, _, kind = name.partition(":")
    try:
        found = importlib.import_module(place)
    except ImportError as error:
        raise InputError(
            f"{place} cannot be imported ({error}). Give package.module:Class, as in ophjax.nets.resnet:ResNet; the "
            "package must be installed or in PYTHONPATH."
        ) from error
    known = [n for n, one in vars(found).items() if inspect.isclass(one) and issubclass(one, nn.Module)]
    if kind not in known:
        raise unknown(f"module of {place}", kind, known)
    values = {}
    for option in options:
        field, _, text = option.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = text  # a word needs no quotes
        values[field] = tuple(value) if isinstance(value, list) else value
    try:
        return getattr(found, kind)(**values)
    except TypeError as error:
        signature = ", ".join(n for n in inspect.signature(getattr(found, kind)).parameters if n not in _LINEN)
        raise InputError(f"{kind} cannot be made: {error}. It takes {signature}; give them by --options.") from error


_LINEN = ("parent", "name")


def shapes(texts: list[str]) -> list[Any]:
    """Reads the inputs' shapes, as in ``1,64,64,3``; float32.

    Raises:
      InputError: one is no shape.
    """
    import jax

    found = []
    for text in texts:
        try:
            shape = tuple(int(part) for part in text.split(","))
        except ValueError as error:
            raise InputError(f"--input {text} is no shape; give whole numbers, as in 1,64,64,3.") from error
        if min(shape) < 1:
            raise InputError(f"--input {text} has a side below 1; give sides of at least 1, as in 1,64,64,3.")
        found.append(jax.ShapeDtypeStruct(shape, "float32"))
    return found


def of_method(method: str, preset: str) -> dict[str, tuple[Any, ...]]:
    """The networks of a method, named as their parameters are, what they are called with, and keyword arguments."""
    import jax

    import presets
    from ophjax import data as datasets
    from ophjax import methods
    from ophjax.nets.networks import find_networks
    from ophjax.train import loop, mesh

    module = methods.load(method)
    config, data_config, train = presets.preset(preset, method)
    data = datasets.load(module.DATA).make(data_config)
    made = module.make(methods.fit_to(config, data))
    batch = loop.batch_spec(data, train, mesh.make_mesh(model=train.model_parallel))
    found = {}
    for name, network in find_networks(made.init, jax.random.key(0), batch).items():
        train_mode = {"train": True} if "train" in network.kwargs else {}
        found[name] = network.module, network.args, network.kwargs | train_mode
    return found


def run(argv: list[str]) -> None:
    """Runs a command line."""
    options = arguments(argv)
    if bool(options.module) == bool(options.method):
        raise InputError("Give either a module, as in ophjax.nets.resnet:ResNet, or --method NAME; --help explains.")
    if options.columns < 2:
        raise InputError(f"--columns is {options.columns}; expected at least 2.")
    networks: dict[str, tuple[Any, ...]]
    if options.method:
        networks = of_method(options.method, options.preset)
    else:
        module = make_module(options.module, options.options)
        networks = {type(module).__name__: (module, shapes(options.input), None)}
    from ophjax.nets.graph import trace_graph

    for name, (module, inputs, kwargs) in networks.items():
        start = time.perf_counter()
        graph = trace_graph(module, *inputs, train_kwargs=kwargs)
        print(f"{name}, read in {time.perf_counter() - start:.2f} s: {graph}\n")
        if options.out:
            from ophjax.train.report.graphs import draw_graph

            stem = f"{options.out.stem}_{name.replace('/', '_')}" if options.method else options.out.stem
            path = options.out.with_name(stem + (options.out.suffix or ".png"))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                title = f"{name} of {options.method}" if options.method else name
                draw_graph(graph, title, columns=options.columns).savefig(path, dpi=130)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} cannot be written: {error}. Give another --out, as in graph.png.") from error
            print(path)


def main() -> int:
    """Runs the command; what the user can mend is one paragraph and exit code 2."""
    return as_command(run)


if __name__ == "__main__":
    sys.exit(main())
