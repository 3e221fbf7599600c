"""TensorFlow Datasets (TFDS), without TensorFlow: data sets written in its layout, and those that the user has.

A TFDS data set is a folder NAME/VERSION or NAME/CONFIG/VERSION with ``dataset_info.json``, ``features.json`` and its
examples in array_record files; its tfrecord format needs TensorFlow and is refused. Images are stored as PNG, other
arrays packed, labels with their classes' names. What a loader knows beside the examples (regions, domains, raters,
names, ...) lies as JSON in ``metadata.json`` under ``ophjax``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ophjax.data import shards
from ophjax.data.sources import Dataset, Example, Source, Subset
from ophjax.errors import InputError

INFO, FEATURES, METADATA = "dataset_info.json", "features.json", "metadata.json"
KEY, FORMAT, RELEASE = "ophjax", 1, "1.0.0"
VERSION = re.compile(r"\d+\.\d+\.\d+")
OTHERS = ("imagefolder", "superres")
"""The loaders that take TFDS data sets that were not prepared here."""


def folder_in(folder: Path) -> Path | None:
    """Finds a TFDS data set: the folder itself, or the one in it by VERSION/ or CONFIG/VERSION/; None without any.

    Raises:
      InputError: there are several.
    """
    if _is_home(folder):
        return folder
    below = [path for prefix in ("", "*/") for path in sorted(folder.glob(f"{prefix}[0-9]*.[0-9]*.[0-9]*"))]
    found = [path for path in below if VERSION.fullmatch(path.name) and _is_home(path)]
    if len(found) > 1:
        raise InputError(f"{folder} holds several TFDS data sets: {', '.join(map(str, found))}. Give one of them.")
    return found[0] if found else None


def _is_home(folder: Path) -> bool:
    return (folder / INFO).is_file() and (folder / FEATURES).is_file()


def home_of(config: Any) -> Path | None:
    """The TFDS data set that one of a configuration's options names; None where there is none."""
    return next((found for path in shards.folders_of(config) if (found := folder_in(path)) is not None), None)


def is_prepared(folder: Path) -> bool:
    """Tells whether a TFDS data set was written by ``write``."""
    try:
        return KEY in json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def refuse(folder: Path, name: str) -> InputError:
    """The error for a loader that cannot read a TFDS data set of others."""
    return InputError(
        f"{folder} is a TFDS data set that was not prepared for --data {name}. Write one by python "
        f"experiments/prepare.py {name} --format tfds, or read this one by --data imagefolder (features image and "
        "label) or --data superres (features lr and hr)."
    )


def opened(folder: Path) -> tuple[dict[str, Any], Any]:
    """Opens a TFDS data set; gives its dataset_info.json and TFDS' builder for it.

    Raises:
      InputError: it is damaged, or in a format that needs TensorFlow.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        name = "/".join(str(info[key]) for key in ("name", "configName") if info.get(key))
        formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
        if "array_record" in formats:
            import tensorflow_datasets as tfds

            return info, tfds.builder_from_directory(str(folder))
    except Exception as error:  # TFDS raises nearly anything on damaged files
        raise InputError(
            f"{folder} holds no whole TFDS data set ({type(error).__name__}: {error}). Prepare it anew."
        ) from error
    raise InputError(
        f"{folder} is in TFDS' format {formats[0]}; expected array_record, which is read without TensorFlow. Where "
        f"TensorFlow is installed, write it anew into another folder: tfds build {name} --file_format=array_record "
        "--data_dir=FOLDER."
    )


class Rows:
    """Some features of the examples of one split: images as they are encoded, the others as TFDS decodes them."""

    def __init__(self, builder: Any, split: str, features: list[str]):
        import tensorflow_datasets as tfds

        chosen = {name: builder.info.features[name] for name in features}
        self._features = tfds.features.FeaturesDict(chosen)
        self._left = {
            name: tfds.decode.SkipDecoding()
            for name, feature in chosen.items()
            if isinstance(feature, tfds.features.Image)
        }
        self._records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._features.deserialize_example_np(self._records[index], decoders=self._left))


class Stored:
    """An image in a TFDS example, for ``images`` to read as if it were a file."""

    suffix = ""

    def __init__(self, rows: Rows, index: int, feature: str, where: str):
        self._rows, self._index, self._feature, self._where = rows, index, feature, where

    def __str__(self) -> str:
        return f"{self._feature} of example {self._index} of {self._where}"

    def read_bytes(self) -> bytes:
        """The encoded image."""
        content = self._rows[self._index][self._feature]
        return content if isinstance(content, bytes) else bytes(content)


def splits_of(folder: Path, **features: str) -> tuple[dict[str, Any], dict[str, Rows], Any]:
    """Opens a TFDS data set of others.

    Args:
      folder: of the version.
      features: those that are needed, and TFDS' class of each, ``Image`` or ``ClassLabel``.

    Returns:
      Its dataset_info.json; the rows of each split that is not empty; its features.

    Raises:
      InputError: as ``opened``, or a feature is missing.
    """
    import tensorflow_datasets as tfds

    info, builder = opened(folder)
    found = builder.info.features
    known = dict(found) if isinstance(found, tfds.features.FeaturesDict) else {}
    if not all(isinstance(known.get(name), getattr(tfds.features, kind)) for name, kind in features.items()):
        has = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(known.items()))
        needs = ", ".join(f"{name} ({kind})" for name, kind in features.items())
        raise InputError(
            f"{folder} has the features {has or 'of a sequence'}; expected {needs}. Give another data set, or write "
            "its examples as image files in folders."
        )
    try:
        sizes = {split: one.num_examples for split, one in builder.info.splits.items()}
        return info, {split: Rows(builder, split, list(features)) for split, size in sizes.items() if size}, found
    except Exception as error:  # as in opened
        raise InputError(f"{folder} holds no whole TFDS data set ({error}). Prepare it anew.") from error


def labels_of(rows: Rows, where: str) -> list[int]:
    """Reads the labels of a split; InputError where an example is damaged."""
    try:
        return [int(rows[i]["label"]) for i in range(len(rows))]
    except Exception as error:  # as in opened
        raise InputError(f"The labels of {where} cannot be read ({error}). Prepare the data set anew.") from error


class Prepared:
    """Examples of one split as their loader gave them."""

    def __init__(self, builder: Any, split: str, about: dict[str, Any]):
        self.names, self.example_bytes = list(about["names"]), int(about["example_bytes"])
        self._rows, self._features = Rows(builder, split, list(builder.info.features)), builder.info.features
        if len(self._rows) != len(self.names):
            raise ValueError(f"it has {len(self.names)} names for {len(self._rows)} examples")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        try:
            found = self._rows[index]
            return {name: self._array(name, value) for name, value in found.items() if value is not None}
        except Exception as error:  # as in opened
            raise InputError(
                f"Example {self.names[index]} of the prepared data cannot be read ({type(error).__name__}: {error}). "
                "Prepare the data set anew."
            ) from error

    def _array(self, name: str, value: Any) -> np.ndarray:
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, bytes):  # a number; classes have 64 bits for TFDS
            return np.asarray(value, np.int32 if name == "label" else self._features[name].np_dtype)
        from PIL import Image

        height, width, channels = self._features[name].shape
        with Image.open(io.BytesIO(value), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise ValueError(f"{name} has {image.size} pixels")
            return np.asarray(image).reshape(height, width, channels)


def read(folder: Path, name: str, config: Any) -> Dataset:
    """Opens a TFDS data set that was written by ``write``.

    Raises:
      InputError: as ``opened``, or it holds another data set or one prepared with other options.
    """
    _, builder = opened(folder)
    try:
        about = builder.info.metadata[KEY]
        if about["format"] != FORMAT:
            raise ValueError("it is of another format")
        sources: dict[str, Source] = {split: Prepared(builder, split, one) for split, one in about["splits"].items()}
        found = shards.assemble(about, sources)
    except Exception as error:  # as in opened
        raise InputError(f"{folder} holds no whole prepared data set ({error}). Prepare it anew.") from error
    shards.check(about, folder, name, config)
    return found


def write(
    data: Dataset,
    config: Any,
    folder: Path,
    *,
    terms: str = "",
    shard_bytes: int = 256 << 20,
    examples: Callable[[str, Source, int], Iterator[tuple[int, Example]]],
) -> Path:
    """Writes a data set's splits as a TFDS data set, NAME/VERSION in a folder; interrupted, it leaves nothing.

    TFDS' builder by shards, not by a generator: that one shuffles, and on disk by TensorFlow from 1 GB a split on.

    Args:
      data: as its loader made it.
      config: of the loader.
      folder: that of TFDS data sets (``data_dir``).
      terms: a note on the licence.
      shard_bytes: so much, before it is packed, is in one file.
      examples: see ``shards.prepare``.

    Returns:
      The folder of the version.

    Raises:
      InputError: it is there already, cannot be written, or has examples that one specification does not fit.
    """
    import tensorflow_datasets as tfds

    home = folder / data.name / RELEASE
    if home.exists():
        raise InputError(f"{home} exists, and TFDS adds nothing to a data set. Give another --out, or delete it.")
    seen = [one for split, source in data.splits.items() for one in _samples(split, source)]
    example = {key: value for one in seen for key, value in one.items()}
    everywhere = set.intersection(*(set(one) for one in seen))
    spec = _spec(example)
    identity = {"format": FORMAT, "name": data.name, "options": shards.options_of(config)}
    about: dict[str, Any] = {**identity, **shards.facts_of(data), "splits": {}}

    def part(split: str, source: Source, kept: list[int], chosen: range) -> Iterator[tuple[int, dict[str, Any]]]:
        for position, found in examples(split, Subset(source, chosen), 0):
            if not _spec(found).items() <= spec.items() or not everywhere <= found.keys():
                raise InputError(
                    f"Example {source.names[chosen[position]]} of {split} has {_told(_spec(found))}, others "
                    f"{_told(spec)}. TFDS wants the same of all: leave --format tfds out."
                )
            kept.append(chosen[position])
            yield chosen[position], {key: _encoded(found[key]) if key in found else None for key in example}
        about["splits"][split] = shards.split_of(source, kept)

    class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = data.name
        VERSION = tfds.core.Version(RELEASE)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{data.note} Written by ophjax. {terms}".strip(),
                features=tfds.features.FeaturesDict(
                    {key: _feature(key, value, data.classes, key in everywhere) for key, value in example.items()}
                ),
                supervised_keys=("image", "label") if {"image", "label"} <= example.keys() else None,
                disable_shuffling=True,
                license=terms or None,
                metadata=tfds.core.MetadataDict({KEY: about}),
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Any]]]:
            return {split: list(self._parts(split, source)) for split, source in data.splits.items()}

        def _parts(self, split: str, source: Source) -> Iterator[Callable[[], Any]]:
            step = max(1, shard_bytes // sum(value.nbytes for value in example.values()))
            kept: list[int] = []
            for start in range(0, len(source), step):
                yield functools.partial(part, split, source, kept, range(start, min(start + step, len(source))))

    try:
        tfds.disable_progress_bar()
        # TFDS tells of its work on stdout and makes a folder for downloads.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            options = tfds.download.DownloadConfig(try_download_gcs=False)
            Builder(data_dir=str(folder), file_format="array_record").download_and_prepare(
                download_dir=scratch, download_config=options
            )
    except (InputError, ImportError):
        raise
    except Exception as error:  # as in opened
        raise InputError(
            f"{home} cannot be written ({type(error).__name__}: {error}). Make room or mend the permissions, then give "
            "the same command again."
        ) from error
    return home


def _samples(split: str, source: Source) -> list[Example]:
    """The first example of a split, or of each of its groups: not all have the entries domain and mask_weight."""
    found = []
    for group in getattr(source, "groups", [range(len(source))]):
        for position in group:
            with contextlib.suppress(InputError):
                found.append(source[position])
                break
    if not found:
        raise InputError(f"The {split} split has no example that can be read. Check the files.")
    return found


def _spec(example: Example) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (value.dtype.name, value.shape) for name, value in sorted(example.items())}


def _told(spec: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in spec.items())


def _is_image(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] in (1, 3)


def _feature(name: str, value: np.ndarray, classes: tuple[str, ...], everywhere: bool) -> Any:
    import tensorflow_datasets as tfds

    number = value.shape == () and value.dtype in (np.int32, np.float32)
    if not everywhere:
        if not number:
            raise InputError(f"Not all examples have {name}. TFDS wants the same of all: leave --format tfds out.")
        return tfds.features.Tensor(shape=(), dtype=value.dtype, optional=True)
    if name == "label" and classes and number:
        return tfds.features.ClassLabel(names=classes)
    if _is_image(value):
        return tfds.features.Image(shape=value.shape, encoding_format="png")
    return tfds.features.Tensor(shape=value.shape, dtype=value.dtype, encoding="none" if number else "zlib")


def _encoded(value: np.ndarray) -> Any:
    """What TFDS takes of an array: the PNG of an image, since it would make one by TensorFlow; else the array."""
    if not _is_image(value):
        return value
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value).save(stream, "PNG")
    return stream.getvalue()
