"""From a ModelConfig to a Mask R-CNN with the weights it asks for."""
