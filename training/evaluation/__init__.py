"""Measures of the nano model on clips that it was not trained on: ``make evaluate``."""
