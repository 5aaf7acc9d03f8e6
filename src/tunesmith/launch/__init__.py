"""Devices, processes and machines: how a run is started, not what it does."""
