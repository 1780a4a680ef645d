"""Views for people: the live board, reports, pictures of predictions, and Optuna's tools."""
