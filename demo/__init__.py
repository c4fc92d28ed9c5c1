"""``make demo``: the pack on its own, or through a ComfyUI, with the nano model."""
