"""What is trained: the transformer, a LoRA for it, or the VAE, and how the result is written."""
