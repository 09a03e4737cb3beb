"""Evaluation of a trained network: its outputs on each set, and rows made from them."""
