"""Draw the pictures of README.md: python experiments/figures.py"""

import sys
from pathlib import Path

from ophjax.data import phantoms


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


def main() -> int:
    """Writes the pictures beside this file, or into the folder given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet(folder / "phantoms.jpg")
    print(folder / "phantoms.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
