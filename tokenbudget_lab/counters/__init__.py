"""Counters: one file for each way of counting."""
