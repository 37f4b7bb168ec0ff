"""One file for each algorithm, written like the pseudo-code of its paper."""
