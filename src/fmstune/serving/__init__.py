"""A tuned model reaches the people who use it: as a talk, an address, a file, and with proof."""
