"""Clips, their sizes and lengths, and the masks that are drawn over them."""
