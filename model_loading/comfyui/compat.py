"""What differs between the supported versions of ComfyUI, asked of ComfyUI itself and never of its version number."""

import inspect


def accepts(function, name: str) -> bool:
    """Whether a function of ComfyUI takes an argument; newer versions have more."""
    return name in inspect.signature(function).parameters
