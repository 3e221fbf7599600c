"""Draw the pictures of README.md: python experiments/figures.py"""

import sys
from pathlib import Path

import numpy as np

from ophjax.data import angles, lesions, organs, phantoms


def contact_sheet(path: Path, *, size: int = 160, columns: int = 6, rows: int = 3) -> None:
    """Draws phantoms with the outlines of disc (white) and cup (turquoise)."""
    from matplotlib.figure import Figure

    source = phantoms.make(phantoms.Config(size=size)).splits["train"]
    figure = Figure(figsize=(1.5 * columns, 1.62 * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns).ravel()):
        example = source[i]
        axes.imshow(example["image"])
        for channel, colour in enumerate(("white", "#30d5c8")):
            axes.contour(example["mask"][..., channel], levels=[0.5], colors=colour, linewidths=0.8)
        axes.set_title("glaucoma" if example["label"] else "healthy", fontsize=8)
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


def shift_sheet(path: Path, *, size: int = 128, columns: int = 4) -> None:
    """Draws the data sets of several domains side by side: a row for each domain, one scene in each column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.84))
    sheets = ((lesions, "class"), (angles, "class"), (organs, ""))
    for panel, (module, titled) in zip(figure.subfigures(1, len(sheets), wspace=0.01), sheets, strict=True):
        names = module.Config().domains
        grid = panel.subplots(
            4, columns, gridspec_kw=dict(left=0.075, right=0.995, top=0.95, bottom=0.005, wspace=0.03, hspace=0.03)
        )
        for axes in grid.ravel():
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(False)
        for column in range(columns):
            views = [module.draw(0, column, name, size) for name in names]
            pictures = [view["image"] for view in views]
            if len(pictures) < 4:
                pictures.append(paint(views[0]["mask"]))
            for axes, picture in zip(grid[:, column], pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
            if titled:
                grid[0, column].set_title(module.CLASSES[int(views[0]["label"])], fontsize=9, pad=3)
        for axes, name in zip(grid[:, 0], [*names, "mask"], strict=False):
            axes.set_ylabel(name, fontsize=9, labelpad=2)
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 72, "optimize": True})


def paint(mask: np.ndarray) -> np.ndarray:
    """Paints exclusive regions: uint8 [h, w, 3]."""
    colours = np.array([(200, 90, 60), (240, 200, 90), (90, 130, 200)], np.uint8)
    return (mask[..., None] * colours[: mask.shape[-1]]).sum(-2).astype(np.uint8)


def main() -> int:
    """Writes the pictures beside this file, or into the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("phantoms.jpg", contact_sheet), ("shift.jpg", shift_sheet)):
        draw(folder / name)
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
