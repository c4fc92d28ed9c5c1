"""The nano model, from its first weights to the folder ``models/nano``."""
