"""``make demo``: the pack on its own, or through a ComfyUI, on a tiny model with random weights."""
