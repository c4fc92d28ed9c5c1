"""What is on disk: weight files, whole models, LoRAs, T5's configuration and tokenizer. No ComfyUI."""
