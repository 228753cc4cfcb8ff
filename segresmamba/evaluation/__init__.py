"""Scores of whole volumes in their original geometry, and pictures of them."""
