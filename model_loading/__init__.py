"""From files to models: checkpoints, the transformer, the VAE, the text encoder and the host's objects.

Only ``host_model`` imports the host; everything else runs without one.
"""
