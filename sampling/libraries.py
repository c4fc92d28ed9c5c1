"""Libraries that only some nodes need, imported when they do."""

from types import ModuleType


def import_kornia() -> ModuleType:
    """kornia.

    Raises:
        RuntimeError: it can't be imported.
    """
    try:
        import kornia
    except ImportError as error:
        raise RuntimeError(
            f"this needs kornia, which can't be imported ({error}): install it into ComfyUI's Python with "
            "pip install kornia"
        ) from error
    return kornia
