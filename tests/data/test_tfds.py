"""TFDS data sets without TensorFlow: what was prepared is what the loader gave; others are read or refused."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from made import assert_same_data, assert_same_example
from PIL import Image

from ophjax import data as datasets
from ophjax.data import shards, tfds
from ophjax.errors import InputError
from ophjax.transforms.resizing import resize_bytes

TINY = {
    "phantoms": dict(masks=3, labelled=5, val=3, test=3),
    "lesions": dict(train=4, val=2, test=2),
}


def plain(split, source, first):
    return ((i, source[i]) for i in range(first, len(source)))


def made(name, **options):
    module = datasets.load(name)
    config = module.Config(**(dict(size=32) | TINY.get(name, {}) | options))
    return config, module.make(config)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Lesions (domains in turn, masks of one channel) as a TFDS data set of several files a split."""
    folder = tmp_path_factory.mktemp("prepared")
    config, data = made("lesions")
    return tfds.write(data, config, folder, terms="CC BY.", shard_bytes=10_000, examples=plain), config, data


def test_nothing_here_needs_tensorflow():
    """TFDS is imported where it is used, and TensorFlow never, even where it is installed."""
    code = "import sys, ophjax.data; from ophjax.data import tfds, superres, imagefolder; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "tensorflow_datasets"} & set(done.stdout.split())
    assert "tensorflow" not in sys.modules


def test_examples_are_those_of_the_loader(prepared):
    home, config, data = prepared
    assert home.parts[-2:] == ("lesions", "1.0.0") and len(list(home.glob("lesions-train.array_record-*"))) > 1
    found = tfds.read(home, "lesions", config)
    assert_same_data(found, data)
    with pytest.raises(InputError, match="exists, and TFDS adds nothing"):
        tfds.write(data, config, home.parent.parent, examples=plain)
    assert [path.name for path in home.parent.parent.iterdir()] == ["lesions"]


def test_several_raters_and_masks_of_two_regions(tmp_path):
    config, data = made("phantoms", raters=3)
    home = tfds.write(data, config, tmp_path, examples=plain)
    # As a run finds it: by the folder given to --out, the data set's, or the version's.
    for root in (home, home.parent, tmp_path):
        assert tfds.folder_in(root) == home
    found = tfds.read(home, "phantoms", config)
    assert found.raters == data.raters
    for split, source in data.splits.items():
        assert_same_example(found.splits[split][len(source) - 1], source[len(source) - 1])


def test_it_is_a_data_set_as_tfds_has_them(prepared):
    """By TFDS' own reader: features, names of classes, counts, description and licence."""
    import tensorflow_datasets

    home, _, data = prepared
    builder = tensorflow_datasets.builder_from_directory(home)
    features = builder.info.features
    assert isinstance(features["image"], tensorflow_datasets.features.Image) and features["image"].shape == (32, 32, 3)
    assert features["label"].names == list(data.classes)
    assert features["domain"].np_dtype == np.int32 and features["domain"].shape == ()
    assert {name: one.num_examples for name, one in builder.info.splits.items()} == {
        name: len(source) for name, source in data.splits.items()
    }
    assert "CC BY." in builder.info.description and data.note in builder.info.description
    assert builder.info.supervised_keys == ("image", "label") and (home / "LICENSE").read_text() == "CC BY."
    source = builder.as_data_source("train[1:3]")
    for i in range(2):
        np.testing.assert_array_equal(source[i]["image"], data.splits["train"][i + 1]["image"])
        assert source[i]["label"] == data.splits["train"][i + 1]["label"]
    with pytest.raises(Exception, match=r"(?i)tensorflow|not implemented"):
        builder.as_dataset(split="train")


def test_what_does_not_fit_is_refused(prepared, tmp_path):
    home, config, _ = prepared
    with pytest.raises(InputError, match="give --data lesions"):
        datasets.make("folder", datasets.load("folder").Config(root=str(home)))
    with pytest.raises(InputError, match=r"Give --data\.size 32"):
        tfds.read(home, "lesions", dataclasses.replace(config, size=64))
    copy = tmp_path / "copy" / "1.0.0"
    copy.mkdir(parents=True)
    for path in home.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = sorted(copy.glob("lesions-test.array_record-*"))[0]
    content = shard.read_bytes()
    about = json.loads((copy / "metadata.json").read_text())
    info = json.loads((copy / "dataset_info.json").read_text())

    def spoiled(path, text):
        (copy / path).write_text(text)
        with pytest.raises(InputError, match="no whole") as caught:
            tfds.read(copy, "lesions", config)
        (copy / "metadata.json").write_text(json.dumps(about))
        (copy / "dataset_info.json").write_text(json.dumps(info))
        return str(caught.value)

    assert "another format" in spoiled("metadata.json", json.dumps({"ophjax": about["ophjax"] | {"format": 9}}))
    spoiled("metadata.json", json.dumps({"ophjax": about["ophjax"] | {"splits": {"train": 3}}}))
    spoiled("metadata.json", "[" * 100_000)
    spoiled("dataset_info.json", "{")
    spoiled("dataset_info.json", json.dumps(info | {"splits": []}))
    shard.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(InputError, match=r"no whole|cannot be read"):
        tfds.read(copy, "lesions", config).splits["test"][0]
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"format tfrecord; expected array_record.*tfds build lesions --file_format"):
        tfds.read(copy, "lesions", config)


def test_examples_that_differ_and_splits_that_are_empty(tmp_path):
    config, data = made("lesions")

    def grown(split, source, first):
        return ((i, one | {"label": np.zeros(2)} if i else one) for i, one in plain(split, source, first))

    with pytest.raises(InputError, match=r"others .*TFDS wants the same of all"):
        tfds.write(data, config, tmp_path, examples=grown)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_bad_examples_are_left_out(tmp_path):
    """The names and groups are those of the good ones, also where a whole file has none."""
    config, data = made("lesions")

    def some(split, source, first):
        return ((i, one) for i, one in plain(split, source, first) if source.names[i] not in bad)

    bad = set(data.splits["domains"].names[:3])
    home = tfds.write(data, config, tmp_path, shard_bytes=1, examples=some)
    found, given = tfds.read(home, "lesions", config).splits["domains"], data.splits["domains"]
    assert found.names == given.names[3:] and len(found) == len(given) - 3
    for i in range(len(found)):
        assert_same_example(found[i], given[i + 3])
    kept = [[i - 3 for i in group if i >= 3] for group in given.groups]
    assert found.groups == [group for group in kept if group]


# Data sets of others ------------------------------------------------------------


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def picture(i, height=50, width=67):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def store(folder, dataset, features, splits, config=""):
    """Writes a data set by a builder of TFDS' usual kind: shuffled, its configuration in the path."""
    import tensorflow_datasets

    core = tensorflow_datasets.core

    class Builder(core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = core.Version("2.0.0")
        BUILDER_CONFIGS = [core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return core.DatasetInfo(builder=self, features=tensorflow_datasets.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: iter(enumerate(examples)) for split, examples in splits.items()}

        def _generate_examples(self):  # TFDS asks for it; the splits above have theirs
            return iter(())

    builder = Builder(data_dir=folder, file_format="array_record")
    options = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=options, download_dir=folder / "downloads")
    return folder / dataset


def store_div2k(folder, scale=2, config="", lr="lr"):
    import tensorflow_datasets

    image = tensorflow_datasets.features.Image
    pairs = [
        {lr: png(resize_bytes(picture(i)[:48, :64], scale)), "hr": png(picture(i))} for i in range(10)
    ]  # fmt: skip
    splits = {"train": pairs[:7], "validation": pairs[7:]}
    return store(folder, "div2k", {lr: image(), "hr": image()}, splits, config or f"bicubic_x{scale}")


def superres(root, **options):
    return datasets.make("superres", datasets.load("superres").Config(root=str(root), size=16, **options))


@pytest.mark.parametrize("scale", [2, 4])
def test_div2k(tmp_path, scale):
    """Stored inputs are taken, those in between made; validation is the test split; images are kept whole in one."""
    data = superres(store_div2k(tmp_path, scale), scale=scale, val_fraction=0.2)
    assert {part: len(data.splits[part]) for part in ("train", "val", "test")} == dict(
        train=6 * 12, val=1 * 12, test=3 * 12
    )
    wholes = [picture(i)[:48, :64] for i in range(10)]
    for part, numbers in (("train", range(7)), ("test", range(7, 10))):
        source = data.splits[part]
        index = next(i for i, name in enumerate(source.names) if name.endswith("-16-32"))
        example = source[index]
        (number,) = [i for i in numbers if (wholes[i][16:32, 32:48] == example["target"]).all()]
        small = resize_bytes(wholes[number], scale)
        np.testing.assert_array_equal(example["image"], small[16 // scale : 32 // scale, 32 // scale : 48 // scale])
        assert ("image_x2" in example) == (scale == 4)
    assert ("x2 made" in data.note) == (scale == 4)


def test_div2k_that_cannot_serve(tmp_path):
    home = store_div2k(tmp_path, 2)
    with pytest.raises(InputError, match=r"inputs 2 times smaller.*Give --data\.scale 2, or.*bicubic_x4"):
        superres(home, scale=4)
    info = home / "bicubic_x2" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match="tfds build div2k/bicubic_x2 --file_format=array_record"):
        superres(home, scale=2)
    with pytest.raises(InputError, match="expected a split train, and inputs that are not shifted"):
        superres(store_div2k(tmp_path / "wild", 4, "realistic_wild_x4"), scale=4)
    with pytest.raises(InputError, match=r"has the features hr \(Image\), low \(Image\); expected lr \(Image\), hr"):
        superres(store_div2k(tmp_path / "named", 2, lr="low"), scale=2)
    store_div2k(tmp_path / "both", 2)
    with pytest.raises(InputError, match=r"several TFDS data sets: .*x2.*x4"):
        superres(store_div2k(tmp_path / "both", 4), scale=4)


def test_images_with_labels(tmp_path):
    import tensorflow_datasets

    features = tensorflow_datasets.features
    spec = {
        "image": features.Image(shape=(None, None, 1)), "label": features.ClassLabel(names=["hand", "chest", "head"]),
        "id": features.Text(), "boxes": features.Sequence(features.BBoxFeature()),
    }  # fmt: skip
    examples = [
        {"image": png(picture(i)[..., 0]), "label": i % 3 if i else -1, "id": f"{i}", "boxes": []} for i in range(30)
    ]
    home = store(tmp_path, "scans", spec, {"train": examples[:24], "test": examples[24:], "extra": examples[:1]})
    make, Config = datasets.load("imagefolder").make, datasets.load("imagefolder").Config
    data = make(Config(root=str(home), size=20))
    assert data.classes == ("hand", "chest", "head") and "val drawn by seed" in data.note
    sizes = {part: len(source) for part, source in data.splits.items()}
    assert sizes["test"] == 6 and sizes["train"] + sizes["val"] == 23  # one has no label
    found = make(Config(root=str(home), size=20, classes=("head", "hand")))
    assert found.classes == ("head", "hand") and len(found.splits["test"]) == 4
    assert found.splits["train"][0]["image"].shape == (20, 20, 3)
    # Stretching to its own size changes nothing, and tells which picture it was.
    whole = {picture(i, 20, 20)[..., 0].tobytes(): i for i in range(9)}
    again = [{"image": png(picture(i, 20, 20)[..., 0]), "label": i % 3, "id": "", "boxes": []} for i in range(9)]
    home = store(tmp_path / "b", "scans", spec, {"train": again, "validation": again[:6], "test": again[:6]})
    data = make(Config(root=str(home), size=20))
    assert "as given" in data.note
    for i in range(9):
        example = data.splits["train"][i]
        assert int(example["label"]) == whole[np.ascontiguousarray(example["image"][..., 0]).tobytes()] % 3
    with pytest.raises(InputError, match="labels hand, chest, head"):
        make(Config(root=str(home), size=20, classes=("hand", "foot")))
    with pytest.raises(InputError, match="not prepared for --data folder"):
        datasets.make("folder", datasets.load("folder").Config(root=str(home)))
    with pytest.raises(InputError, match=r"expected lr \(Image\), hr \(Image\)"):
        superres(home, scale=2)


def test_shards_are_still_told_apart(prepared, tmp_path):
    _, config, data = prepared
    shards.prepare(data, config, tmp_path / "ours", examples=plain)
    assert tfds.folder_in(tmp_path / "ours") is None and shards.home_of(config) is None
