"""What the nano model can do, measured on clips that no training saw: ``make evaluate``."""
