"""Back ends for magicseg that need no weights: things known by their colour, painted as discs and found again."""
