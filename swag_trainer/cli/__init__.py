"""The command line `swag-trainer`, a module per command. It may import every other package; none imports it."""
