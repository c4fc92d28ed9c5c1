"""Pure torch: geometry, masks, positions, noise schedules and samplers.

Nothing here imports ComfyUI or a model. Latents are unscaled, B C T h w, unless a docstring says otherwise.
"""
