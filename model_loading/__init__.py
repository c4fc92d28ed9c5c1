"""From files to models: checkpoints, the transformer, the VAE, the text encoder and the host's objects.

Only the modules called ``host_*`` import the host; everything else runs without one.
"""
