"""Pure functions of tensors and arrays: no I/O, no communication, no import from the rest of the package."""
