"""Tokenizer, precision, quantization, adapters and attention: what makes a model ready to train or to answer."""
