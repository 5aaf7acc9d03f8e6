"""Settings: their schema, their spellings, the readers of four dialects, and rules. Imports no torch."""
