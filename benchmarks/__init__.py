"""Measurements of astrogen, each one command with a JSON file and a table: `deconvolution`
(accuracy, honesty), `cost` (time, memory).
"""
