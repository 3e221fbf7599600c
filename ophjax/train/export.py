"""A trained network as files that need neither ophjax nor its data: a program, its weights, a model card.

The program (``jax.export``, StableHLO) takes any number of images at once and runs on CPU, CUDA and TPU; weights are
its arguments, so that it stays small. Reloading needs jax and safetensors. ``load`` does it in a few lines, which stand
in the model card too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import ophjax
from ophjax import methods, trees
from ophjax.errors import InputError

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS, ABOUT, CARD = "program.jaxexport", "weights.safetensors", "model.json", "README.md"

SNIPPET = """\
import jax, json, numpy as np
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(bytearray(open("{folder}/program.jaxexport", "rb").read()))
weights = load_file("{folder}/weights.safetensors")
inputs = json.load(open("{folder}/model.json"))["inputs"]  # names, shapes and types of one example's entries
batch = {{name: np.zeros((3, *one["shape"]), one["type"]) for name, one in inputs.items()}}  # your three images
outputs = jax.jit(program.call)(weights, batch)
print({{name: value.shape for name, value in outputs.items()}})
"""
"""What reloads an artefact with jax and safetensors alone."""


class Exported(NamedTuple):
    """An artefact that was loaded.

    Attributes:
      about: its model.json.
      weights: by path, on the device.
      program: of (weights, batch), compiled for each number of images that it meets.
    """

    about: dict[str, Any]
    weights: dict[str, jax.Array]
    program: Callable[..., dict[str, jax.Array]]

    def __call__(self, **batch: Any) -> dict[str, jax.Array]:
        """Predicts a batch: ``model(image=images)``, uint8 [b, h, w, 3] of the shape that ``about["inputs"]`` says.

        Raises:
          InputError: an entry is missing or has another shape or type.
        """
        inputs = self.about["inputs"]
        for name, one in inputs.items():
            value = batch.get(name)
            if value is None or list(value.shape[1:]) != one["shape"] or str(value.dtype) != one["type"]:
                got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                wanted = f"{one['type']} [b, {', '.join(map(str, one['shape']))}]"
                raise InputError(
                    f"The model needs {name} as {wanted} and got {got}. Its inputs are {', '.join(inputs)}."
                )
        return self.program(self.weights, {name: batch[name] for name in inputs})


def load(folder: Path | str) -> Exported:
    """Loads an artefact.

    Raises:
      InputError: a file is missing, damaged or not the one that was exported, or jax cannot read this artefact.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        content = {name: (folder / name).read_bytes() for name in (PROGRAM, WEIGHTS)}
        changed = [name for name, one in content.items() if hashlib.sha256(one).hexdigest() != about["sha256"][name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no exported model ({error!r}). Give the folder that export.py wrote.") from error
    if changed:
        raise InputError(f"{folder / changed[0]} is not the file that was exported: it is damaged. Export it again.")
    from jax import export
    from safetensors.numpy import load as load_weights

    try:
        program = export.deserialize(bytearray(content[PROGRAM]))
        return Exported(about, jax.device_put(load_weights(content[WEIGHTS])), jax.jit(program.call))
    except Exception as error:  # flatbuffers, MLIR and safetensors raise many kinds
        raise InputError(
            f"{folder} was exported with jax {about.get('versions', {}).get('jax')} and cannot be read by jax "
            f"{jax.__version__} ({type(error).__name__}: {error}). Export the run again, or install that version."
        ) from error


def export_run(run: Any, out: Path, *, licence: str = "") -> dict[str, Any]:
    """Writes the artefact of a restored run (see ``restore.restore``) and returns what model.json says.

    Args:
      run: the run.
      out: the folder.
      licence: under which the weights are given away, for the card.

    Raises:
      InputError: a package is missing, the folder cannot be written, or the network needs a fixed number of images.
    """
    from ophjax.train.runfolder import versions, write_whole

    weights, exported, batch = build(run)
    try:
        program = bytes(exported.serialize())
    except ImportError as error:
        raise InputError("Export needs the package flatbuffers: pip install 'ophjax[export]'.") from error
    from safetensors.numpy import save

    stored = save(weights)
    module = methods.load(run.about["method"])
    about = {
        "method": run.about["method"],
        "paper": module.PAPER,
        "data": run.about["data"],
        "note": run.about.get("note", ""),
        "splits": run.about.get("splits", {}),
        "classes": list(run.classes),
        "regions": list(run.regions),
        "exclusive": run.method.exclusive,
        "ordinal": run.method.ordinal,
        "checkpoint": run.step,
        "scores": test_scores(run.folder, run.step),
        "caution": run.about.get("caution", ""),
        "licence": licence,
        "inputs": {name: {"shape": list(one.shape), "type": str(one.dtype)} for name, one in batch.items()},
        "outputs": {
            # The number of images is a symbol, written as it stands.
            name: {"shape": [n if isinstance(n, int) else str(n) for n in one.shape], "type": str(one.dtype)}
            for name, one in _outputs(exported).items()
        },
        "parameters": sum(value.size for value in weights.values()),
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
        "config": run.about["config"],
        "trained_with": run.about.get("versions", {}),
        "versions": versions(),
        "sha256": {name: hashlib.sha256(one).hexdigest() for name, one in ((PROGRAM, program), (WEIGHTS, stored))},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error}. Give an --out folder that can be written.") from error
    write_whole(out / PROGRAM, program)
    write_whole(out / WEIGHTS, stored)
    write_whole(out / CARD, card(about).encode())
    write_whole(out / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    return about


def build(run: Any) -> tuple[dict[str, np.ndarray], Any, dict[str, jax.ShapeDtypeStruct]]:
    """Makes the program: the weights that prediction reads, the exported function of (weights, batch), its inputs.

    Randomness in prediction, where a method has any, is that of one fixed key.
    """
    from jax import export

    from ophjax.keys import at
    from ophjax.nets.conv import for_all_platforms
    from ophjax.train.predict import entries_read

    whole = {"params": run.state.params, "extra": run.state.extra}
    every = {path: np.asarray(leaf) for path, leaf in trees.named_leaves(whole).items()}
    inputs = {name: run.example[name] for name in sorted(entries_read(run))}

    def forward(weights: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        # What prediction does not read (critics, partners in training) is zeros that vanish in compilation.
        def take(path: str, leaf: Any) -> Any:
            return weights[path] if path in weights else jax.numpy.zeros_like(leaf)

        parts = trees.map_named(take, whole)
        return run.method.predict(at(jax.random.key(0), "predict"), run.state.replace(**parts), batch)

    (rows,) = export.symbolic_shape("b")
    batch = {name: jax.ShapeDtypeStruct((rows, *one.shape), one.dtype) for name, one in inputs.items()}

    def lower(weights: Mapping[str, np.ndarray]) -> Any:
        shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in weights.items()}
        with for_all_platforms(True):
            return export.export(jax.jit(lambda w, b: forward(w, b)), platforms=PLATFORMS)(shapes, batch)

    one = {name: jax.ShapeDtypeStruct((1, *shape.shape), shape.dtype) for name, shape in inputs.items()}
    used = inputs_used(forward, every, one)
    weights = {name: value for name, value in every.items() if name in used}
    try:
        return weights, lower(weights), inputs
    except TypeError as error:
        raise InputError(
            f"{run.folder} cannot be exported for any number of images: its method mixes those of a batch ({error})."
        ) from error


def inputs_used(function: Any, weights: Mapping[str, Any], batch: Mapping[str, Any]) -> set[str]:
    """Names the weights that any result of ``function(weights, batch)`` depends on."""
    traced = jax.make_jaxpr(function)(dict(weights), dict(batch)).jaxpr
    live = {variable for variable in traced.outvars if not hasattr(variable, "val")}
    for equation in reversed(traced.eqns):
        if live.intersection(equation.outvars):
            live.update(variable for variable in equation.invars if not hasattr(variable, "val"))
    # A dictionary is flattened in the order of its names.
    return {name for name, variable in zip(sorted(weights), traced.invars, strict=False) if variable in live}


def _outputs(exported: Any) -> dict[str, Any]:
    return jax.tree.unflatten(exported.out_tree, exported.out_avals)


def test_scores(folder: Path, step: int) -> dict[str, float]:
    """The scores of the test split that the state of ``step`` got; none where it was not tested, as only a run's last
    state is."""
    from ophjax.train.logs import read_events

    events = read_events(folder / "metrics.jsonl")
    tests = [event for event in events if event.get("event") == "test" and event.get("step") == step]
    return dict(tests[-1]["scores"]) if tests else {}


def card(about: Mapping[str, Any]) -> str:
    """Writes the model card as Markdown."""
    paper, scores = about["paper"], about["scores"]
    sizes = ", ".join(f"{count} {name}" for name, count in about["splits"].items())
    lines = [
        f"# {about['method']} on {about['data']}",
        "",
        f"{paper['title']} ({paper['authors']}, {paper['venue']}, arXiv {paper['arxiv']}), rewritten and trained by "
        f"ophjax {ophjax.__version__}. {about['parameters']:,} numbers; checkpoint of step "
        f"{about['checkpoint']}.",
        "",
        "## Trained on",
        "",
        f"Data set `{about['data']}`: {about['note']} Examples: {sizes}.",
        *([f"Classes: {', '.join(about['classes'])}."] if about["classes"] else []),
        *([f"Regions: {', '.join(about['regions'])}."] if about["regions"] else []),
        "",
        "## Scores on its test split",
        "",
    ]
    shown = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    lines += (
        ["| score | value | 95 % interval |", "|---|---|---|"]
        if shown
        else ["There are none: a run tests its last state, and this checkpoint is another or the run has not ended."]
    )
    for name, value in shown.items():
        if not name.endswith(("_low", "_high")):
            low, high = shown.get(f"{name}_low"), shown.get(f"{name}_high")
            interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            lines.append(f"| {name} | {value:.4f} | {interval} |")
    lines += [
        "",
        "## Intended use and limits",
        "",
        "Research on images like those it was trained on. It is no medical device, was not tested in a clinic, and "
        "must not decide about a patient. On other cameras, devices, populations or image sizes its scores will be "
        "lower, without a warning. Probabilities are not calibrated.",
        *([about["caution"]] if about["caution"] else []),
        "",
        "## Inputs and outputs",
        "",
        "Images are RGB of 8 bits, stretched to the shape below (antialiased bilinear); normalisation is part of the "
        "program.",
        "",
        "| | name | shape | type |",
        "|---|---|---|---|",
    ]
    if about["ordinal"]:
        lines[-3:-3] = ["The grade is how many of P(grade >= 1), P(grade >= 2), ... are above one half."]
    for kind in ("inputs", "outputs"):
        for name, one in about[kind].items():
            shape = ["b", *one["shape"]] if kind == "inputs" else one["shape"]
            lines.append(f"| {kind[:-1]} | `{name}` | {' x '.join(map(str, shape))} | {one['type']} |")
    lines += [
        "",
        f"Platforms: {', '.join(about['platforms'])}. Reload with jax and safetensors alone (jax "
        f"{about['versions'].get('jax', '')} wrote it; artefacts are readable for some months of newer versions):",
        "",
        "```python",
        SNIPPET.format(folder=".").rstrip(),
        "```",
        "",
        "## Licence",
        "",
        "Program: Apache-2.0 (ophjax). Weights: "
        + (about["licence"] or "not stated; the terms of the data set apply, ask the one who trained them."),
        "",
        f"Versions of the training: {json.dumps(about['trained_with'])}.",
        "",
    ]
    return "\n".join(lines)
