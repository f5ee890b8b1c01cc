"""Sums over tokens of outer products: the gradients of weights."""
