"""What tests and the laboratory share: random rows, the textbook's samplers, observers."""
