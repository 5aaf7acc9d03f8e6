"""From files of rows to batches of tokens: rows, conversation, rendered text with spans, example, batch."""
