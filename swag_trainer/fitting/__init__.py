"""Posteriors of adapters that were trained without one: no trajectory is needed, only the adapter and some labelled examples."""
