"""Data: from files on disk to training batches (readers, packing, splits, augmentation, loaders)."""
