"""Libraries that only some nodes need. They are imported when such a node runs."""

import importlib
from types import ModuleType


def import_library(name: str) -> ModuleType:
    """kornia or diffusers.

    Raises:
        RuntimeError: it can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(
            f"this needs {name}, which can't be imported ({error}): install it into ComfyUI's Python with "
            f"pip install {name}"
        ) from error
