"""One training run of one Mask R-CNN on one data set of cells, without Ray or Optuna."""
