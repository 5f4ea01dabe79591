"""A run's folder: where it may lie, who works in it, what it was begun with, how it is resumed."""
