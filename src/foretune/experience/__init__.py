"""What was learnt from earlier runs: one SQLite file, written by every fit and study, exchanged as Parquet."""
