"""The command line: the only room that prints, parses argv and exits."""
