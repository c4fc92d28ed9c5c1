"""ComfyUI's MODEL, CLIP, VAE, samplers and LoRAs. Beside ``nodes``, only this folder imports ComfyUI."""
