"""The transformer and the VAE, in PyTorch alone. No ComfyUI."""
