"""Plans: from a traced solver to rows of coefficients."""
