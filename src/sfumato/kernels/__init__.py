"""Arithmetic that torch has no kernel for, compiled on the user's machine at first need; everything works without, only slower."""
