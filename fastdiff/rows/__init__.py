"""Rows: what one launch computes, as data, and the rules for the tensors that it is given."""
