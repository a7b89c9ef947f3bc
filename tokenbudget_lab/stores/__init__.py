"""Where the events of a ledger are kept: memory or a DuckDB file. Each is a `tokenbudget_lab.store.Store`."""
