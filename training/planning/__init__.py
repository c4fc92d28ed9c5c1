"""What a phase needs before it runs: memory, operations, hours and disk, traced without a GPU."""
