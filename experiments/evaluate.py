"""Score a submission: python experiments/evaluate.py gamma --truth DIR --submission DIR

Reads the official files of GAMMA or GOALS (tables as CSV or xlsx), prints every component, and the total where its
formula is known. Needs no accelerator library.

  gamma  truth: glaucoma_grading_*_GT, fovea_localization_*_GT, Disc_Cup_Mask/, and the images for their sizes
         submission: Classification_Results.csv, Localization_Results.csv, Disc_Cup_Segmentations/0101.bmp ...
  goals  truth: Layer_Masks/, Train_GC_GT
         submission: Layer_Segmentations/0101.png ..., Classification_Results.csv (ImgName, GC_Pred)
"""

import argparse
import json
import re
import sys
from pathlib import Path

from ophjax.data import challenges
from ophjax.errors import InputError


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("challenge", choices=("gamma", "goals"))
    parser.add_argument("--truth", type=Path, required=True, help="folder of the truth")
    parser.add_argument("--submission", type=Path, required=True, help="folder of the submission")
    tasks = "gamma: grading fovea segmentation; goals: segmentation classification (default: all)"
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help=tasks)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    only = parser.add_argument_group("gamma only")
    only.add_argument("--missing", choices=("raise", "worst"), default="raise", help="what a missing answer does")
    only.add_argument("--disc", choices=("union", "rim"), default="union", help="what the disc's Dice is taken of")
    only.add_argument("--size", metavar="WxH", help="size of all images, where their files are not there")
    return parser.parse_args(argv)


def main() -> int:
    """Prints the scores; what the user can mend is one paragraph and exit code 2."""
    options = arguments(sys.argv[1:])
    try:
        size = None
        if options.size is not None:
            if re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", options.size) is None:
                raise InputError(f"--size is {options.size!r}; expected width x height in pixels, such as 2992x2000.")
            width, height = options.size.split("x")
            size = int(width), int(height)
        if options.challenge == "gamma":
            settings = {"missing": options.missing, "disc": options.disc, "size": size}
            found = challenges.score_gamma(options.truth, options.submission, tasks=options.tasks, **settings)
        else:
            found = challenges.score_goals(options.truth, options.submission, tasks=options.tasks)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for remark in found.remarks:
        print(f"note: {remark}", file=sys.stderr)
    if options.json:
        print(json.dumps({"challenge": options.challenge, "scores": found.scores, "remarks": found.remarks}))
    else:
        for name, value in found.scores.items():
            print(f"{name:20} {value:.10g}")
        if options.challenge == "goals":
            print("No total: how the platform joined these is not known.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
