"""Groups in, tables out: final results, the tables of the paper, rounds to reach a target."""
