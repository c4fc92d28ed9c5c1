"""Training of CogVideoX-Fun models with accelerate, at constant token length. It needs no ComfyUI."""
