"""Hyperparameter search over cellseg: YAML spaces, Optuna sampling, ASHA, Ray Tune, Parquet tables."""
