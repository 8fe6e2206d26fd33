"""The roof: the command line, a file per command. It may import everything, and nothing imports it."""
