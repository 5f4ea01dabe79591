"""Options and the tables behind them, with the standard library alone: help and mistakes are answered at once."""
