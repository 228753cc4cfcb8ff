"""Grids, searches and cross-validations. The only place that imports optuna."""
