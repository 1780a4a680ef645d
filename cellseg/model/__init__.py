"""The model: from a ModelConfig to a Mask R-CNN with its weights."""
