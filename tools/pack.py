"""Load the pack as a package under an alias: its folder ``nodes`` must not meet ComfyUI's ``nodes.py``."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "cogvideox_fun"


def load_pack(alias: str = ALIAS):
    """Import the repository's root as the package ``alias``, as ComfyUI does with a custom node."""
    if alias not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            alias, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[alias] = module
        spec.loader.exec_module(module)
    return sys.modules[alias]
