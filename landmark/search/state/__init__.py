"""The state of a study: journal, trial records, lock, leaderboard and snapshots."""
