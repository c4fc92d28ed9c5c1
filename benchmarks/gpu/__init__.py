"""Measurements on a real GPU, inside a real ComfyUI and beside diffusers."""
