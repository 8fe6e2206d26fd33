"""Level 2: the only code that knows how PEFT spells a weight."""
