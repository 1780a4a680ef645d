"""What people look at: the live board and pictures of predictions."""
