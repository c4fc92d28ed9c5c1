"""Pure torch: geometry, masks, positions, noise schedules and the latents a CogVideoX-Fun model is conditioned on.

Nothing here imports a host or a model. Latents are unscaled and laid out B C T h w unless a docstring says otherwise.
"""
