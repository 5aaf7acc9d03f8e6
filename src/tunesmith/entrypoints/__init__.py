"""Front doors of the recipes: the Python APIs and scripts that the documents name, over the one engine.

A door knows its document's names and nothing of training; recipe folders hold launchers that import it.
"""
