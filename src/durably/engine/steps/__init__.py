"""Steps of runs: their stored times, and views, reports and spans of them."""
