"""Readers: each turns a file of one dialect into a Draft. A reader knows only its own spellings and defaults."""
