"""graph.py: networks by import path and by method, the table, the picture, and what it says to wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import graph
from ophjax.errors import InputError
from ophjax.nets.graph import trace_graph
from ophjax.nets.unet import UNet
from ophjax.train.report.graphs import draw_graph

UNET = ("ophjax.nets.unet:UNet", "--options", "regions=2", "width=4", "depth=2")


def test_a_module_is_shown_and_drawn(tmp_path, capsys):
    graph.run([*UNET, "--input", "1,16,16,3", "--out", str(tmp_path / "deep" / "unet.png")])
    said = capsys.readouterr().out
    assert "2 concat" in said and "predicted: 36 of 36 tensors" in said and "head: head/kernel, head/bias" in said
    with Image.open(tmp_path / "deep" / "unet.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6)) > 20


def test_the_networks_of_a_method_are_drawn_under_their_names(tmp_path, capsys):
    graph.run(["--method", "ads", "--preset", "smoke", "--out", str(tmp_path / "ads.png")])
    said = capsys.readouterr().out
    names = ["critic", "segmenter", "synthesizers_first", "synthesizers_second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"ads_{name}.png" for name in names]
    assert "synthesizers/first, read in " in said


def test_a_picture_has_every_node_and_edge_once():
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    traced = trace_graph(UNet(2, 4, 2), *graph.shapes(["1,16,16,3"]))
    for columns in (4, 100):
        (axes,) = draw_graph(traced, "UNet", columns=columns).axes
        boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
        arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
        corners = {(round(box.get_x(), 3), round(box.get_y(), 3)) for box in boxes}
        assert len(boxes) == len(corners) == len(traced.nodes)
        # An edge to another row is marked at both ends instead.
        marks = [text.get_text().split(" → ") for text in axes.texts if " → " in text.get_text()]
        apart = {(int(a), int(b)) for left, right in marks for a in left.split(", ") for b in right.split(", ")}
        assert apart <= set(traced.edges)
        assert len(arrows) + len(apart) == len(traced.edges)
        assert bool(apart) == (columns == 4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Give either a module"),
        (["ophjax.nets.unet:UNet", "--method", "ads"], "Give either a module"),
        (["ophjax.nets.nothing:UNet"], "cannot be imported"),
        (["ophjax.nets.unet:UNett"], "Did you mean 'UNet'"),
        (["ophjax.nets.unet:UNet"], "It takes regions, width, depth"),
        (["ophjax.nets.unet:UNet", "--options", "region=2"], "It takes regions, width, depth"),
        ([*UNET, "--input", "1,16,x"], "is no shape"),
        ([*UNET, "--input", "0,16,16,3"], "below 1"),
        ([*UNET, "--input", "1,16"], "could not be called"),
        ([*UNET, "--columns", "1"], "at least 2"),
        (["--method", "adz"], "Did you mean 'ads'"),
        ([*UNET, "--input", "1,16,16,3", "--out", "/proc/nothing/x.png"], "cannot be written"),
        ([*UNET, "--input", "1,16,16,3", "--out", "x.tifff"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_paragraph(argv, message):
    with pytest.raises(InputError, match=message) as caught:
        graph.run(argv)
    assert "\n" not in str(caught.value)


def test_the_command_exits_with_2_on_wrong_input():
    done = subprocess.run(
        [sys.executable, Path(graph.__file__), "--columns", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
