"""Real learning curves: studies whose trials were drawn at random and trained to their full length."""
