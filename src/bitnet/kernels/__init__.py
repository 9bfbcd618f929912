"""Products with packed ternary weights in C. Where there is no compiler, torch does the work."""
