"""The state of a study and its decisions, without Ray and without a clock of its own."""
