"""What a search knows and decides, without Ray and without a clock of its own."""
