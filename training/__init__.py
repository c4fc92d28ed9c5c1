"""Training of CogVideoX-Fun models: token-length buckets, random masks, full and LoRA, under accelerate. No host."""
