"""One training run of one Mask R-CNN on one data set of cells. Knows nothing of Ray or Optuna."""
