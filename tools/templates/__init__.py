"""The source of workflows/ and subgraphs/: `tasks` says what they hold, the other modules how it is written down."""
