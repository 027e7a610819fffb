"""Side by side with peers, in one run, printing ratios. `make bench`, or `python -m benchmarks`."""
