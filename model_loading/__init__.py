"""From files to models: checkpoints, the transformer, the VAE, the text encoder and ComfyUI's objects.

Only the folder ``comfyui`` imports ComfyUI; everything else runs without one.
"""
