"""The floors of the house: what each part of ophjax may import."""

import ast
import subprocess
import sys
from pathlib import Path

import ophjax
from ophjax.methods import METHODS

ROOT = Path(ophjax.__file__).parent
FLOORS = {
    "errors": 0, "types": 0, "trees": 0, "keys": 0,
    "transforms": 1, "losses": 1, "metrics": 1,
    "nets": 2, "data": 2,
    "methods": 3,
    "train": 4,
}  # fmt: skip
LIGHT = ("jax", "jaxlib", "flax", "optax", "einops", "numpy")


def imports(path: Path, *, at_import: bool) -> list[str]:
    """Lists modules that a file imports; with ``at_import`` only those its own import needs."""
    found: list[str] = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Import):
                found.extend(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                # "from ophjax import x" means the module ophjax.x.
                found.extend(
                    f"{child.module}.{alias.name}" if child.module == "ophjax" else child.module
                    for alias in child.names
                )
            walk(child)

    walk(ast.parse(path.read_text()))
    return found


def test_files_import_only_from_their_floor_or_below():
    wrong = []
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for name in imports(path, at_import=False):
            if name.startswith("ophjax."):
                other = name.split(".")[1]
                # errors is under everything; siblings of one floor meet only inside their own folder.
                allowed = FLOORS[other] < FLOORS[parts[0]] or other == parts[0] or FLOORS[other] == 0
                if not allowed:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_only_nets_import_linen():
    users = {
        path.relative_to(ROOT).parts[0]
        for path in ROOT.rglob("*.py")
        if any(name.startswith("flax.linen") for name in imports(path, at_import=False))
    }
    assert users == {"nets"}


def test_no_file_is_longer_than_400_lines():
    tops = (ROOT, ROOT.parent / "experiments", ROOT.parent / "tests")
    long = {str(p): n for top in tops for p in top.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long, long


def test_methods_import_where_only_jax_flax_optax_einops_are_installed():
    """In a fresh process that refuses all other third-party packages (an accelerator box may lack them)."""
    code = f"""
import importlib, importlib.abc, sys
HEAVY = ("grain", "tensorflow_datasets", "orbax.checkpoint", "tyro", "matplotlib", "sklearn", "PIL", "tqdm",
         "jaxtyping", "chex")
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(HEAVY) and name.split(".")[0] not in FLAX_NEEDS:
            raise ImportError("not installed here: " + name)
FLAX_NEEDS = set()
import flax.linen, optax  # flax itself may import orbax or others
FLAX_NEEDS |= {{name.split(".")[0] for name in sys.modules}}
sys.meta_path.insert(0, Refuse())
for module in ["ophjax", "ophjax.data", *{list(METHODS.values())!r}]:
    importlib.import_module(module)
late = [name for name in sys.modules if name.startswith(HEAVY) and name.split(".")[0] not in FLAX_NEEDS]
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
