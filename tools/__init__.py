"""What demo, tests and benchmarks share, and commands for those who change the repository."""
